"""Environments played through a server: whole episodes, each with its return, however the copies reset."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from scriptedserver import GOOD, ScriptedServer, Step, decided, response

from ratchet.client import Client, Retries
from ratchet.client.playing import Played, play, play_vector

LENGTHS = (2, 5, 1, 4, 3)


class Counting(gymnasium.Env[Any, Any]):
    """Episodes of given lengths; each step is worth its number.

    Only one action is allowed in each step: the number of the step before, modulo 3.
    """

    def __init__(self, first: int = 0) -> None:
        self.observation_space = gymnasium.spaces.Box(-1, 1e6, (1,))
        self.action_space = gymnasium.spaces.Discrete(3)
        self._episode = first - 1
        self._t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self._episode += 1
        self._t = 0
        return self._seen()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Any]:
        assert action == self._t % 3, "the mask did not allow it"
        worth = self._t + 1.0
        self._t += 1
        ended = self._t == LENGTHS[self._episode % len(LENGTHS)]
        observation, info = self._seen()
        return observation, worth, ended and self._t % 2 == 0, ended and self._t % 2 == 1, info

    def _seen(self) -> tuple[Any, Any]:
        return np.float32([self._t]), {"action_mask": np.arange(3) == self._t % 3}


def obedient(body: dict[str, Any]) -> bytes:
    """Does what the mask allows, and checks that mask and observation are of the same step."""
    if "observation" in body:
        assert body["mask"].index(True) == body["observation"][0] % 3
        return response(200, decided(body, action=body["mask"].index(True)))
    if "observations" in body:
        for mask, observation in zip(body["masks"], body["observations"], strict=True):
            assert mask.index(True) == observation[0] % 3
        return response(200, decided(body, actions=[mask.index(True) for mask in body["masks"]]))
    return response(202, {"accepted": 1})


def asking(server: ScriptedServer) -> Client:
    return Client(server.url, strict=True, timeout=20)


def returns(server: ScriptedServer) -> list[tuple[float, int]]:
    """What was sent back, each episode once."""
    sent = [request.body for request in server.requests if "return" in request.body]
    assert len({body["episode"] for body in sent}) == len(sent)
    return sorted((body["return"], body["length"]) for body in sent)


def worth(*lengths: int) -> list[tuple[float, int]]:
    return sorted((n * (n + 1) / 2, n) for n in lengths)


def asked(server: ScriptedServer) -> dict[str, int]:
    """Requests of each episode for an action."""
    counts: dict[str, int] = {}
    for request in server.requests:
        names = request.body.get("episodes") or [request.body.get("episode")]
        if "return" not in request.body:
            for name in names:
                counts[name] = counts.get(name, 0) + 1
    return counts


def test_episodes_are_played_to_their_end():
    with (
        ScriptedServer(*[Step(obedient)] * 100) as server,
        asking(server) as client,
    ):
        played = play(Counting(), client, 5)

    assert played.lengths == list(LENGTHS)
    assert returns(server) == worth(*LENGTHS)
    assert sorted(asked(server).values()) == sorted(LENGTHS)
    assert played.mean == pytest.approx(np.mean([total for total, _ in worth(*LENGTHS)]))
    assert sum(played.policies.values()) == sum(LENGTHS) == len(played.seconds)
    assert played.fallbacks == {}


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.value)
def test_copies_play_their_share_in_every_way_to_reset(mode: AutoresetMode):
    envs = gymnasium.vector.SyncVectorEnv(
        [lambda first=first: Counting(first) for first in (0, 1, 2)], autoreset_mode=mode
    )
    with (
        ScriptedServer(*[Step(obedient)] * 100) as server,
        asking(server) as client,
    ):
        played = play_vector(envs, client, 7)

    # Three, two and two episodes: of lengths 2 5 1, 5 1 and 1 4.
    assert returns(server) == worth(2, 5, 1, 5, 1, 1, 4)
    assert sorted(asked(server).values()) == sorted([2, 5, 1, 5, 1, 1, 4])
    assert sorted(zip(played.returns, played.lengths, strict=True)) == returns(server)


class Components(Counting):
    """As `Counting`, with actions of two components, of which the mask allows one value each."""

    def __init__(self, first: int = 0) -> None:
        super().__init__(first)
        self.action_space = gymnasium.spaces.MultiDiscrete([3, 2], start=[0, 5])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Any]:
        assert action[1] == 5 + self._t % 2, "the mask did not allow it"
        return super().step(action[0])

    def _seen(self) -> tuple[Any, Any]:
        observation, info = super()._seen()
        return observation, {"action_mask": np.append(info["action_mask"], np.arange(2) == self._t % 2)}


def test_a_copy_that_has_played_its_share_keeps_to_the_mask_of_each_component():
    def obey(body: dict[str, Any]) -> bytes:
        if "observations" not in body:
            return response(202, {"accepted": 1})
        masks = body["masks"]
        return response(
            200, decided(body, actions=[[m[:3].index(True), 5 + m[3:].index(True)] for m in masks])
        )

    envs = gymnasium.vector.SyncVectorEnv([lambda i=i: Components(i) for i in (1, 2)])
    with ScriptedServer(*[Step(obey)] * 100) as server, asking(server) as client:
        # One copy plays five steps, the other one, and then is stepped along.
        played = play_vector(envs, client, 2)
    assert sorted(played.lengths) == [1, 5]


def test_actions_of_a_box_and_seeds():
    def middle(body: dict[str, Any]) -> bytes:
        return response(200, decided(body, action=[0.5])) if "observation" in body else obedient(body)

    env = gymnasium.make("Pendulum-v1", max_episode_steps=10)
    lengths: list[Played] = []
    for _ in range(2):
        with (
            ScriptedServer(*[Step(middle)] * 100) as server,
            asking(server) as client,
        ):
            lengths.append(play(env, client, 2, seed=3, deterministic=True))
        assert all(
            request.body["deterministic"] for request in server.requests if "observation" in request.body
        )
    assert lengths[0].returns == lengths[1].returns
    assert lengths[0].returns[0] != lengths[0].returns[1]


def test_safe_actions_keep_the_episode_going_and_are_counted():
    lost = Step(response(503, b""))
    with (
        ScriptedServer(lost, GOOD, lost, GOOD) as server,
        Client(server.url, fallback=0, timeout=20, retries=Retries(attempts=1)) as client,
    ):
        played = play(gymnasium.make("CartPole-v1", max_episode_steps=4), client, 1, seed=0)

    assert played.lengths == [4]
    assert played.fallbacks == {"client": 2}
    assert played.policies["", ""] == 2


def test_statistics_of_nothing_are_unknown():
    nothing = Played()
    assert np.isnan([nothing.mean, nothing.standard_error, nothing.latency(0.5)]).all()
