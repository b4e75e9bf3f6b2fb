"""Rewards of recent decisions: in time, late, twice, unknown; any history against a plain model of it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from ratchet_inference.decisions.returns import Returns, Tally
from ratchet_inference.decisions.rewards import Rewards, RewardSettings

from ratchet.api.v1alpha1.serverstats import COHORT_SECONDS
from ratchet.decisions import Decision, Reward

WINDOW = 60.0


class Server:
    """Rewards with a clock in hand and a list for a log."""

    def __init__(self, *, log: bool = True, **bounds: Any) -> None:
        self.now = 1_000_000.0
        self.written: list[Reward] = []
        record: Callable[[Reward], None] | None = self.written.append if log else None
        self.rewards = Rewards(record, RewardSettings(window=WINDOW, **bounds), lambda: self.now)

    def decides(
        self, id_: str = "a", episode: str | None = "e", arm: str = "stable", digest: str = "d"
    ) -> None:
        self.rewards.decided(Decision(id_, self.now, digest, arm, episode, 0, [0.0], None, 0, -0.7, None))

    def takes(self, body: object) -> dict[str, Any]:
        """What became of an accepted request, without the zeros."""
        status, answer = self.rewards.receive(body)
        assert status == 202
        return {name: count for name, count in answer.items() if count}

    def episodes(self, arm: str = "stable") -> dict[str, Any]:
        [found] = self.rewards.episodes(arm)
        return found


# One reward


def test_a_reward_in_time_is_written_once():
    server = Server()
    server.decides("a")

    assert server.takes({"id": "a", "reward": 2}) == {"accepted": 1}
    assert server.takes({"id": "a", "reward": 3}) == {"duplicates": 1}
    assert server.written == [Reward(server.now, "a", None, 2.0, None, default=False, late=False)]


def test_a_late_reward_is_written_as_late():
    server = Server()
    server.decides("a")
    server.now += WINDOW + 1

    assert server.takes({"id": "a", "reward": 2}) == {"late": 1}
    assert server.takes({"id": "a", "reward": 2}) == {"duplicates": 1}
    assert server.written == [Reward(server.now, "a", None, 2.0, None, default=False, late=True)]


def test_the_last_moment_of_the_window_is_in_time():
    server = Server()
    server.decides("a")
    server.now += WINDOW
    assert server.takes({"id": "a", "reward": 2}) == {"accepted": 1}


def test_the_default_is_written_when_the_window_passes_and_a_late_reward_after_it():
    server = Server(default=-1.0)
    server.decides("a", episode=None)
    server.now += WINDOW + 1
    server.rewards.tick()
    assert server.takes({"id": "a", "reward": 2}) == {"late": 1}

    assert [(one.reward, one.default, one.late) for one in server.written] == [
        (-1.0, True, False),
        (2.0, False, True),
    ]


def test_a_reward_of_another_servers_decision_is_kept_for_the_reader():
    server = Server()
    assert server.takes({"id": "elsewhere", "reward": 1}) == {"unknown": 1}
    assert server.takes({"episode": "elsewhere", "return": 1}) == {"unknown": 1}
    assert [one.late for one in server.written] == [None, None]


def test_without_a_log_only_unknown_ones_are_not_found():
    server = Server(log=False)
    server.decides("a")

    status, answer = server.rewards.receive({"id": "elsewhere", "reward": 1})
    assert status == 404
    assert "another server" in answer["error"]["message"]
    assert server.takes({"rewards": [{"id": "elsewhere", "reward": 1}, {"id": "a", "reward": 1}]}) == {
        "accepted": 1,
        "unknown": 1,
    }


def test_an_episode_waits_from_its_last_decision():
    server = Server()
    server.decides("a")
    server.now += WINDOW
    server.decides("b")
    server.now += WINDOW
    assert server.takes({"episode": "e", "return": 5, "length": 2}) == {"accepted": 1}


def test_an_episode_that_goes_on_holds_up_no_other():
    server = Server()
    server.decides("a", "long")
    server.decides("b", "short")
    server.now += WINDOW
    server.decides("c", "long")
    server.now += 1

    assert server.takes({"episode": "short", "return": 1}) == {"late": 1}
    assert server.takes({"episode": "long", "return": 1}) == {"accepted": 1}


def test_a_batch_is_taken_one_by_one():
    server = Server()
    server.decides("a")
    rewards = [
        {"id": "a", "reward": 1}, {"id": "a", "reward": 1},
        {"id": "x", "reward": 1}, {"episode": "e", "return": 1},
    ]  # fmt: skip
    assert server.takes({"rewards": rewards}) == {"accepted": 2, "duplicates": 1, "unknown": 1}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (None, "send a JSON object"),
        ([], "send a JSON object"),
        ({}, "id or episode"),
        ({"id": "a"}, "reward must be a finite number"),
        ({"id": 7, "reward": 1}, "id or episode must be text"),
        ({"id": "", "reward": 1}, "text of 1 to 256"),
        ({"id": "a" * 257, "reward": 1}, "text of 1 to 256"),
        ({"id": "a", "reward": float("nan")}, "finite"),
        ({"id": "a", "reward": 10**400}, "finite"),
        ({"id": "a", "reward": True}, "finite"),
        ({"id": "a", "reward": "1"}, "finite"),
        ({"id": "a", "return": 1}, "unknown field return"),
        ({"id": "a", "episode": "e", "reward": 1}, "unknown field episode"),
        ({"episode": "e", "reward": 1}, "unknown field reward"),
        ({"episode": "e", "return": 1, "length": -1}, "count of steps"),
        ({"episode": "e", "return": 1, "length": 1.5}, "count of steps"),
        ({"episode": "e", "return": 1, "length": 1 << 31}, "count of steps"),
        ({"rewards": []}, "at least one"),
        ({"rewards": {"id": "a"}}, "at least one"),
        ({"rewards": [{"id": "a", "reward": 1}], "id": "a"}, "the only field"),
        ({"rewards": [{"id": "a", "reward": 1}, {"id": "a"}]}, "reward 1: reward must be"),
        ({"rewards": [[]]}, "reward 0: a reward is"),
    ],
)
def test_what_is_unclear_is_refused_whole_with_an_example(body: object, words: str):
    server = Server()
    server.decides("a")

    status, answer = server.rewards.receive(body)

    assert status == 400
    assert words in answer["error"]["message"]
    assert '{"id": "…", "reward": 1.0}' in answer["error"]["message"]
    assert server.written == []


def test_too_many_rewards_at_once_are_refused():
    status, answer = Server(most=2).rewards.receive({"rewards": [{"id": "a", "reward": 1}] * 3})
    assert (status, answer["error"]["code"]) == (413, "large-batch")


# Returns


def test_returns_are_summed_by_arm_and_policy():
    server = Server()
    for name, value, arm, digest in [
        ("e", 1.0, "stable", "old"), ("f", 4.0, "stable", "old"), ("g", 9.0, "canary", "new"),
    ]:  # fmt: skip
        server.decides(name, name, arm, digest)
        server.takes({"episode": name, "return": value, "length": 10})

    stable, canary = server.episodes("stable"), server.episodes("canary")
    assert (stable["digest"], stable["n"], stable["mean"], stable["m2"], stable["steps"]) == (
        "old",
        2,
        2.5,
        4.5,
        20,
    )
    assert (canary["digest"], canary["n"], canary["mean"]) == ("new", 1, 9.0)
    assert len(server.rewards.episodes()) == 2


def test_an_episode_counts_for_the_policy_of_its_first_decision():
    server = Server()
    server.decides("a", "e", "canary", "new")
    server.decides("b", "e", "stable", "old")
    server.takes({"episode": "e", "return": 1})

    assert [one["arm"] for one in server.rewards.episodes()] == ["canary"]


def test_cohorts_keep_returns_with_those_of_their_age():
    server = Server()
    server.now = 1_200_000.0
    server.decides("a", "early")
    server.now += WINDOW + COHORT_SECONDS
    server.decides("b", "later")
    server.takes({"episode": "later", "return": 5})

    first, second = server.episodes()["cohorts"]
    assert (first["start"], first["started"], first["awaited"], first["closed"]) == (1_200_000.0, 1, 0, True)
    assert (first["missing"], second["n"], second["mean"], second["closed"]) == (1, 1, 5.0, False)
    server.now += COHORT_SECONDS
    assert server.episodes()["cohorts"][1]["closed"]


def test_missing_default_and_late_returns_are_told_apart():
    without = Server()
    without.decides()
    without.now += WINDOW + 1
    assert (without.episodes()["missing"], without.episodes()["n"]) == (1, 0)
    assert without.takes({"episode": "e", "return": 7}) == {"late": 1}
    assert (without.episodes()["late"], without.episodes()["n"], without.episodes()["awaited"]) == (1, 0, 0)

    with_default = Server(default=-3.0)
    with_default.decides()
    with_default.now += WINDOW + 1
    found = with_default.episodes()
    assert (found["defaulted"], found["n"], found["mean"], found["missing"]) == (1, 1, -3.0, 0)


def test_a_reward_for_a_decision_is_no_return():
    server = Server()
    server.decides("a")
    server.takes({"id": "a", "reward": 1})
    assert server.episodes()["n"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_running_sums_are_those_of_numpy(seed: int):
    values = np.random.default_rng(seed).normal(1e6, 3.0, 500)
    tally = Tally(started=500)
    for value in values:
        tally.add(float(value), None, default=False)
    assert tally.mean == pytest.approx(values.mean(), rel=1e-12)
    assert tally.m2 == pytest.approx(((values - values.mean()) ** 2).sum(), rel=1e-9)


def test_old_policies_and_cohorts_make_room():
    returns = Returns(cohorts=3, policies=2)
    for digest in ("x", "y", "z"):
        for began in range(0, 100, 10):
            returns.tallies("stable", digest, began)
    found = returns.json(100.0)
    assert [one["digest"] for one in found] == ["y", "z"]
    assert [cohort["start"] for cohort in found[0]["cohorts"]] == [70.0, 80.0, 90.0]


def test_memory_is_bounded_and_what_is_forgotten_is_counted():
    server = Server(capacity=100)
    for i in range(1_000):
        server.decides(f"a{i}", f"e{i}")
        server.rewards.receive({"id": f"a{i - 50}", "reward": 1})

    assert len(server.rewards._decisions) <= 100  # pyright: ignore[reportPrivateUsage]
    assert len(server.rewards._decisions._over) <= 100  # pyright: ignore[reportPrivateUsage]
    assert server.takes({"id": "a0", "reward": 1}) == {"unknown": 1}
    assert server.episodes()["missing"] == 900
    assert server.episodes()["awaited"] == 100


# Any history


class History(RuleBasedStateMachine):
    """The same history told to a server and to a model that forgets nothing.

    Episodes are named after decisions here; a name's wait ends `WINDOW` after it was last seen.
    """

    names = st.sampled_from([f"n{i}" for i in range(6)])

    def __init__(self) -> None:
        super().__init__()
        self.server = Server(default=0.5)
        self.last: dict[tuple[str, str], float] = {}
        self.over: set[tuple[str, str]] = set()
        self.rewarded: set[tuple[str, str]] = set()

    @rule(name=names, episode=names)
    def decide(self, name: str, episode: str) -> None:
        for key in (("id", name), ("episode", episode)):
            if key not in self.over and key not in self.rewarded:
                self.last[key] = self.server.now
        self.server.decides(name, episode)

    @rule(seconds=st.sampled_from([1.0, 20.0, 59.0, 60.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.server.now += seconds
        self.server.rewards.tick()
        for key, at in self.last.items():
            if key not in self.rewarded and self.server.now - at > WINDOW:
                self.over.add(key)

    @rule(name=names, by=st.sampled_from(["id", "episode"]), value=st.floats(-10, 10))
    def reward(self, name: str, by: str, value: float) -> None:
        key = (by, name)
        if key not in self.last:
            wanted = "unknown"
        elif key in self.rewarded:
            wanted = "duplicates"
        else:
            wanted = "late" if key in self.over else "accepted"
            self.rewarded.add(key)
        assert self.server.takes({by: name, "reward" if by == "id" else "return": value}) == {wanted: 1}

    @precondition(lambda self: self.last)
    @invariant()
    def each_name_has_one_default_and_one_reward_at_most(self) -> None:
        for default in (True, False):
            of = [
                (one.id, one.episode)
                for one in self.server.written
                if one.default is default and one.late is not None
            ]
            assert len(of) == len(set(of))

    @precondition(lambda self: any(kind == "episode" for kind, _ in self.last))
    @invariant()
    def every_episode_is_awaited_returned_or_over(self) -> None:
        episodes = {key for key in self.last if key[0] == "episode"}
        [found] = self.server.rewards.episodes()
        assert found["started"] == len(episodes)
        assert found["defaulted"] == len(episodes & self.over)
        assert found["awaited"] == len(episodes - self.over - self.rewarded)
        assert found["n"] == found["started"] - found["awaited"]
        assert sum(cohort["n"] for cohort in found["cohorts"]) == found["n"]


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
