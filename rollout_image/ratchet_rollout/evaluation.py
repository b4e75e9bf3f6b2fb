"""Plays whole episodes to judge a policy; nothing is learned from them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratchet.policies import Actor, flatten_observation
from ratchet_rollout.environments import Environments

# Half an hour of an Atari game: 108,000 frames, a step each fourth. An episode without an end of its own
# would hold up the worker for ever.
LONGEST_EPISODE = 27_000


def evaluate(
    environments: Environments,
    actor: Actor,
    episodes: int,
    seed: int,
    deterministic: bool,
    check: Callable[[], object] = lambda: None,
    *,
    actions: bool = False,
) -> dict[str, NDArray[Any]]:
    """Returns and lengths of `episodes` episodes, in no particular order.

    Each environment plays a number of episodes that is fixed beforehand: to take the first that end anywhere
    would favour short ones. An episode is cut at `LONGEST_EPISODE` steps; then there are fewer, for that
    environment can't begin another.

    Args:
        environments: all are reset first, and left in the midst of episodes.
        actor: the policy that acts.
        episodes: how many.
        seed: the same one gives the same episodes.
        deterministic: take the most likely actions.
        check: called before each step; what it raises ends the evaluation.
        actions: with the sums over each episode of its actions, and of their squares, by output.

    """
    rng = np.random.default_rng(seed)
    dtype = np.dtype(environments.spec.observation.dtype)
    observation = np.asarray(environments.reset(seed), dtype)
    size = environments.size
    left = np.full(size, episodes // size) + (np.arange(size) < episodes % size)
    returns, lengths = np.zeros(size), np.zeros(size, np.int64)
    episode_returns: list[float] = []
    episode_lengths: list[int] = []
    space = environments.spec.action
    sums = np.zeros((2, size, space.outputs if actions else 0))
    episode_sums = [sums[:, :0]]
    while left.any():
        check()
        acted = actor.act(observation, rng, deterministic).action
        taken = actor.to_environment(acted)
        # Of a reset, too: the environment may reuse what it is given, and says only afterwards what counts.
        done = flatten_observation(space, taken).astype(np.float64) if actions else None
        step = environments.step(taken)
        if done is not None:
            done[~step.valid] = 0
            sums += (done, done**2)
        returns += step.reward
        lengths += step.valid
        too_long = lengths >= LONGEST_EPISODE
        ended = step.terminated | step.truncated | too_long
        if ended.any():
            counted = ended & (left > 0)
            episode_returns += returns[counted].tolist()
            episode_lengths += lengths[counted].tolist()
            episode_sums.append(sums[:, counted])
            left -= counted
            left[too_long & ~(step.terminated | step.truncated)] = 0
            returns[ended] = 0
            lengths[ended] = 0
            sums[:, ended] = 0
        observation = np.asarray(step.observation, dtype)
    columns: dict[str, NDArray[Any]] = {
        "episode_return": np.array(episode_returns, np.float32),
        "episode_length": np.array(episode_lengths, np.int32),
    }
    if actions:
        columns["action_sum"], columns["action_squares"] = np.concatenate(episode_sums, axis=1)
    return columns
