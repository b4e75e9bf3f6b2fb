"""The clients, the decision log and the rewards against the real policy server: one contract for all."""

import asyncio
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from policyserver import Pair, Running, policy, serving
from ratchet_inference.decisions.log import DecisionLog
from ratchet_inference.decisions.rewards import Rewards, RewardSettings
from scriptedserver import decided

from ratchet.client import AsyncClient, Client, Overloaded, PolicyError, Refused
from ratchet.client.playing import play, play_vector
from ratchet.decisions.reading import LoggedDecisions, read
from ratchet.decisions.sources import Folder

OBSERVATION = [0.1, -0.2, 0.3, 0.4]


class Deployment:
    """A server with a log in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.log = DecisionLog(folder)
        self.rewards = Rewards(self.log.record_reward, RewardSettings(), time.time)
        self.running: Running | None = None

    @property
    def url(self) -> str:
        assert self.running is not None
        return f"http://127.0.0.1:{self.running.port}"

    def logged(self) -> LoggedDecisions:
        """Everything, once the log is closed."""
        self.log.start()
        asyncio.run(self.log.close())
        return read(Folder(self._folder))


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(tmp_path / "log")
    with serving(Pair(policy()), made.log, made.rewards) as made.running:
        yield made


@pytest.fixture
def client(deployment: Deployment) -> Iterator[Client]:
    with Client(deployment.url, strict=True, timeout=20) as client:
        yield client


def test_the_scripted_server_answers_with_the_fields_of_the_real_one(deployment: Deployment):
    """Else the tests of the clients would prove nothing."""
    assert deployment.running is not None
    for body in (
        {"observation": OBSERVATION, "id": "a"},
        {"observations": [OBSERVATION] * 2, "ids": ["b", "c"], "episodes": ["e", "f"]},
    ):
        status, real = deployment.running.act(**body)
        assert status == 200
        assert real.keys() == decided(body).keys()


def test_an_action_is_the_policys(client: Client):
    action = client.act(OBSERVATION, deterministic=True, mask=[True, True, True])
    decision = policy().decide(
        np.array([OBSERVATION], np.float32),
        deterministic=np.array([True]), temperature=np.ones(1, np.float32), seeds=[None],
    )  # fmt: skip
    assert action.action == decision.action[0]
    assert action.log_probability == pytest.approx(float(decision.log_probability[0]))
    assert (action.digest, action.arm, action.fallback) == ("a" * 64, "stable", None)


def test_choices_mean_what_they_say(client: Client):
    seeded = {client.act(OBSERVATION, seed=7, temperature=100.0).action for _ in range(10)}
    assert len(seeded) == 1
    assert client.act(np.float32(OBSERVATION), mask=np.array([False, False, True])).action == 2
    assert client.act(OBSERVATION, temperature=1000.0).log_probability == pytest.approx(
        math.log(1 / 3), abs=0.01
    )


def test_a_batch_is_answered_in_order(client: Client):
    masks = np.eye(3, dtype=bool)
    actions = client.act_batch([OBSERVATION] * 3, masks=masks, episodes=["a", "b", "c"])
    assert [action.action for action in actions] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"observation": [1, 2]}, "wrong-shape"),
        ({"observation": "left"}, "wrong-type"),
        ({"observation": OBSERVATION, "mask": [False] * 3}, "mask"),
        ({"observation": OBSERVATION, "temperature": -1.0}, "bad-field"),
    ],
)
def test_what_is_wrong_is_refused_with_the_servers_words(
    client: Client, arguments: dict[str, Any], code: str
):
    with pytest.raises(Refused) as caught:
        client.act(arguments.pop("observation"), **arguments)
    assert caught.value.status == 400
    assert code in caught.value.code
    assert len(str(caught.value)) > 20


def test_without_the_token_nothing_is_answered():
    with serving(Pair(policy()), token="secret") as running:
        url = f"http://127.0.0.1:{running.port}"
        with Client(url, strict=True, timeout=20) as without, pytest.raises(Refused) as caught:
            without.act(OBSERVATION)
        assert caught.value.status == 401
        with Client(url, strict=True, timeout=20, token="secret") as allowed:
            assert allowed.act(OBSERVATION).fallback is None


def test_a_server_without_a_policy_still_answers_or_says_when_to_come_again():
    with serving(Pair()) as running, Client(f"http://127.0.0.1:{running.port}", strict=True) as client:
        with pytest.raises(PolicyError) as caught:
            client.act(OBSERVATION)
        assert isinstance(caught.value, Overloaded)


def test_many_callers_of_one_async_client(deployment: Deployment):
    async def ask() -> int:
        async with AsyncClient(deployment.url, strict=True, timeout=20) as client:
            actions = await asyncio.gather(*(client.act(OBSERVATION, episode=f"e{i}") for i in range(300)))
            assert await client.reward(1.0, id=actions[0].id)
            return len({action.id for action in actions})

    assert asyncio.run(ask()) == 300


def test_what_was_asked_is_logged_as_it_was_answered_and_rewarded(client: Client, deployment: Deployment):
    actions = [client.act(OBSERVATION, episode="e", mask=[True, True, i != 1]) for i in range(3)]
    assert client.reward(2.5, id=actions[1].id)
    assert client.reward(2.5, id=actions[1].id), "a reward that is sent twice is no error"
    assert client.reward(7.0, episode="e", length=3)

    found = deployment.logged().columns
    assert found["id"].tolist() == [action.id for action in actions]
    assert found["action"].ravel().tolist() == [action.action for action in actions]
    assert found["log_probability"].tolist() == [action.log_probability for action in actions]
    assert found["observation"].tolist() == [np.float32(OBSERVATION).tolist()] * 3
    assert found["mask"].tolist() == [[True, True, True], [True, True, False], [True, True, True]]
    assert (found["t"].tolist(), set(found["episode"])) == ([0, 1, 2], {"e"})
    assert (set(found["digest"]), set(found["arm"])) == ({"a" * 64}, {"stable"})
    np.testing.assert_equal(found["reward"].tolist(), [math.nan, 2.5, math.nan])
    assert found["episode_return"].tolist() == [7.0] * 3
    assert found["episode_complete"].all()


def test_an_environment_is_played_and_its_returns_are_in_the_statistics(
    client: Client, deployment: Deployment
):
    class Masked(gymnasium.Wrapper[Any, Any, Any, Any]):
        """CartPole for a policy of three actions."""

        action_space = gymnasium.spaces.Discrete(3)

        def reset(self, **arguments: Any) -> Any:
            return self.env.reset(**arguments)[0], {"action_mask": np.array([True, True, False])}

        def step(self, action: Any) -> Any:
            observation, *rest, _ = self.env.step(action)
            return observation, *rest, {"action_mask": np.array([True, True, False])}

    def make() -> gymnasium.Env[Any, Any]:
        return Masked(gymnasium.make("CartPole-v1"))

    alone = play(make(), client, 3, seed=1)
    together = play_vector(gymnasium.vector.SyncVectorEnv([make] * 2), client, 4, seed=2)

    assert deployment.running is not None
    [found] = deployment.running.stats()["episodes"]
    returns = alone.returns + together.returns
    assert (found["arm"], found["digest"], found["n"], found["awaited"]) == ("stable", "a" * 64, 7, 0)
    assert found["mean"] == pytest.approx(np.mean(returns))
    assert found["m2"] == pytest.approx(np.var(returns) * 7)
    assert found["steps"] == sum(alone.lengths + together.lengths)

    episodes = list(deployment.logged().episodes())
    assert sorted(len(one["t"]) for one in episodes) == sorted(alone.lengths + together.lengths)
    assert all(one["episode_complete"].all() for one in episodes)
    assert sorted(float(one["episode_return"][0]) for one in episodes) == sorted(returns)
