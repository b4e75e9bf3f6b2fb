"""Plays Gymnasium environments through a deployment: what a policy is worth where it is served.

Every action is asked for, every return is sent back, and what came from a fallback is counted. Needs numpy,
and Gymnasium for its environments.
"""

import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ratchet.client.blocking import Client
from ratchet.client.contract import Action

MASK = "action_mask"


@dataclass(slots=True)
class Played:
    """What came of some episodes.

    Attributes:
        returns: of each episode, in the order they ended.
        lengths: steps of each.
        policies: actions by digest and arm of who decided.
        fallbacks: actions that came from a fallback, by its word.
        seconds: of each request.

    """

    returns: list[float] = field(default_factory=list[float])
    lengths: list[int] = field(default_factory=list[int])
    policies: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    fallbacks: Counter[str] = field(default_factory=Counter[str])
    seconds: list[float] = field(default_factory=list[float], repr=False)

    @property
    def mean(self) -> float:
        """Of the returns; NaN without any."""
        return float(np.mean(self.returns)) if self.returns else float("nan")

    @property
    def standard_error(self) -> float:
        """Of the mean; NaN of fewer than two returns."""
        n = len(self.returns)
        return float(np.std(self.returns, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")

    def latency(self, quantile: float) -> float:
        """Seconds that this share of the requests took at most; NaN without any."""
        return float(np.quantile(self.seconds, quantile)) if self.seconds else float("nan")

    def count(self, actions: list[Action], seconds: float) -> None:
        """Takes the answers of one request."""
        self.seconds.append(seconds)
        for action in actions:
            self.policies[action.digest, action.arm] += 1
            if action.fallback is not None:
                self.fallbacks[action.fallback] += 1

    def end(self, client: Client, episode: str, total: float, length: int) -> None:
        """Takes the end of an episode, and sends its return."""
        self.returns.append(total)
        self.lengths.append(length)
        client.reward(total, episode=episode, length=length)


def play(
    env: Any, client: Client, episodes: int, *, seed: int | None = None, deterministic: bool | None = None
) -> Played:
    """Plays whole episodes, one after another.

    Args:
        env: a gymnasium.Env; where its info has an `action_mask`, that is sent too.
        client: of the deployment.
        episodes: how many.
        seed: of the first episode's reset, and one more for each further one.
        deterministic: take the most likely action; None leaves it to the server.

    """
    played = Played()
    start = secrets.token_hex(6)
    for number in range(episodes):
        name = f"{start}-{number}"
        observation, info = env.reset(seed=None if seed is None else seed + number)
        total, length, ended = 0.0, 0, False
        while not ended:
            began = time.perf_counter()
            action = client.act(observation, episode=name, mask=info.get(MASK), deterministic=deterministic)
            played.count([action], time.perf_counter() - began)
            observation, reward, terminated, truncated, info = env.step(_one(env.action_space, action.action))
            total, length, ended = total + float(reward), length + 1, terminated or truncated
        played.end(client, name, total, length)
    return played


def play_vector(
    envs: Any, client: Client, episodes: int, *, seed: int | None = None, deterministic: bool | None = None
) -> Played:
    """Plays whole episodes in all copies of a vector environment at once, with one request for each step.

    Each copy plays the same number of episodes, the first ones one more: to take the episodes that end first
    would be to prefer short ones.

    Args:
        envs: a gymnasium.vector.VectorEnv of any autoreset mode.
        client: of the deployment.
        episodes: how many in all.
        seed: of the reset.
        deterministic: as in `play`.

    """
    played = Played()
    start, size = secrets.token_hex(6), int(envs.num_envs)
    left = np.array([episodes // size + (i < episodes % size) for i in range(size)])
    number = np.zeros(size, int)
    total, length = np.zeros(size), np.zeros(size, int)
    space = envs.single_action_space
    idle = envs.action_space.sample()
    mode = envs.metadata["autoreset_mode"].value
    resetting = np.zeros(size, bool)
    masks: list[Any] = [None] * size
    observation, info = envs.reset(seed=seed)
    _learn(masks, info)
    while left.any():
        # A copy that only resets itself in this step takes no action.
        asking = np.flatnonzero((left > 0) & ~resetting)
        actions = np.array(idle)
        for i in np.flatnonzero(left == 0):
            # It has played its share and is stepped along, by what its mask allows.
            if masks[i] is not None:
                actions[i] = _first_allowed(space, masks[i])
        if len(asking):
            names = [f"{start}-{i}-{number[i]}" for i in asking]
            allowed = [masks[i] for i in asking]
            began = time.perf_counter()
            answers = client.act_batch(
                observation[asking],
                episodes=names,
                masks=None if allowed[0] is None else allowed,
                deterministic=deterministic,
            )
            played.count(answers, time.perf_counter() - began)
            actions[asking] = [_one(space, answer.action) for answer in answers]
        observation, reward, terminated, truncated, info = envs.step(actions)
        _learn(masks, info)
        ended = terminated | truncated
        total[asking] += reward[asking]
        length[asking] += 1
        for i in asking[ended[asking]]:
            played.end(client, f"{start}-{i}-{number[i]}", float(total[i]), int(length[i]))
            total[i] = length[i] = 0
            number[i] += 1
            left[i] -= 1
        if mode == "NextStep":
            resetting = ended
        elif mode == "Disabled" and ended.any():
            observation, info = envs.reset(options={"reset_mask": ended})
            _learn(masks, info)
    return played


def _one(space: Any, action: Any) -> Any:
    """An action as its space has it: a number where the shape is (), for environments that index with it."""
    return action if space.shape == () else np.asarray(action, space.dtype)


def _first_allowed(space: Any, mask: Any) -> Any:
    """An action that the mask allows: its entries are the values of each component, one after the other."""
    if hasattr(space, "nvec"):
        components = np.split(np.asarray(mask), np.cumsum(space.nvec)[:-1])
        first = [int(np.argmax(allowed)) for allowed in components]
        return space.start + np.reshape(first, space.shape)
    if hasattr(space, "start"):
        return space.start + int(np.argmax(mask))
    return np.zeros(space.shape, space.dtype)  # MultiBinary: a mask never forbids 0


def _learn(masks: list[Any], info: dict[str, Any]) -> None:
    """Takes the masks that an info has; it has none of the copies that were not reset."""
    if MASK in info:
        for i in np.flatnonzero(info.get(f"_{MASK}", np.ones(len(masks), bool))):
            masks[i] = info[MASK][i]
