"""Turns of the event loop: which questions are shed, whose policy answers, and that none is left waiting."""

import json
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from policyserver import (
    RECURRENT,
    SPEC,
    Broken,
    Kept,
    Pair,
    Running,
    answers,
    policy,
    post,
    send_to,
    serving,
    two_servers,
)
from ratchet_inference.asking import parse
from ratchet_inference.fitting import Fitting

OBSERVATION = [0.1, -0.2, 0.3, 0.4]
BODY = json.dumps({"observation": OBSERVATION})


def pair_of(running: Running, *bodies: str) -> list[int]:
    """The statuses of two questions that arrive together."""
    with running.connect() as connection:
        connection.sendall(b"".join(post(body) for body in bodies or (BODY, BODY)))
        return [status for status, _ in answers(connection, 2)]


def test_after_a_stall_the_server_takes_questions_again():
    stalls = [1.0]

    def stall(decisions: Any) -> Any:
        if stalls:
            time.sleep(stalls.pop())
        return decisions

    with serving(Pair(Broken(policy(), stall))) as running:
        # As if turns had been slow for long, whatever the one stall alone is worth.
        pair_of(running)
        for _ in range(500):
            running.call(lambda: running.server.answering.pace.measured(2, 1.0))
        assert pair_of(running) == [200, 503]
        assert [200, 200] in [pair_of(running) for _ in range(50)]


def test_one_stall_alone_sheds_nothing():
    stalls = [1.5]

    def stall(decisions: Any) -> Any:
        if stalls:
            time.sleep(stalls.pop())
        return decisions

    with serving(Pair(Broken(policy(), stall)), max_delay_ms=200) as running:
        pair_of(running)
        assert pair_of(running) == [200, 200]


@pytest.mark.parametrize("part", ["_sort", "_batch", "_give", "_step"])
def test_a_failure_of_the_server_itself_is_said_to_everybody(part: str, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> Any:
        raise RuntimeError("a fault")

    with serving(Pair(policy())) as running:
        with monkeypatch.context() as patched:
            patched.setattr(running.server.answering, part, fail)
            assert pair_of(running) == [500, 500]
        assert pair_of(running) == [200, 200]


@pytest.mark.parametrize("part", ["_batch", "_give"])
def test_an_answer_of_500_is_an_error_of_its_arm(part: str, monkeypatch: pytest.MonkeyPatch):
    """What judges a canary compares it with the stable arm's errors: those of its server are among them."""

    def fail(*_: Any) -> Any:
        raise RuntimeError("a fault")

    with serving(Pair(policy())) as running:
        with monkeypatch.context() as patched:
            patched.setattr(running.server.answering, part, fail)
            assert pair_of(running) == [500, 500]
        (arm,) = running.server.state()["arms"]
        assert (arm["arm"], arm["requests"], arm["predictions"], arm["errors"]) == (
            "stable", 2, 2, {"internal": 2},
        )  # fmt: skip


def swap(running: Running, pair: Pair, digest: str, **options: Any) -> None:
    def work() -> None:
        pair.previous, pair.current = pair.current, policy(digest, **options)

    running.call(work)


def asked(running: Running, *episodes: str) -> list[str]:
    _, answer = running.act(observations=[OBSERVATION] * len(episodes), episodes=list(episodes))
    assert answer["episodes"] == list(episodes)
    return [digest[0] for digest in answer["digests"]]


def test_a_batch_is_answered_by_the_policy_of_each_of_its_episodes():
    pair = Pair(policy("a"))
    with serving(pair) as running:
        assert asked(running, "old") == ["a"]
        swap(running, pair, "b", seed=2)
        assert asked(running, "new", "old", "newer") == ["b", "a", "b"]
        assert asked(running, "old", "new") == ["a", "b"]
        assert asked(running, "new", "newest") == ["b", "b"]
        status, wrong = running.act(
            observations=[OBSERVATION, OBSERVATION, [1]], episodes=["new", "old", "x"]
        )
    assert status == 400
    assert "observation 2 " in wrong["error"]["message"]


def test_an_episode_of_the_new_policy_keeps_its_memory_beside_one_of_the_previous():
    pair = Pair(policy("a", RECURRENT))
    with serving(pair) as running:
        asked(running, "old")
        swap(running, pair, "b", spec=RECURRENT, seed=2)
        asked(running, "new")
        _, both = running.act(observations=[OBSERVATION] * 2, episodes=["old", "new"])
    assert both["ts"] == [1, 1]
    assert [digest[0] for digest in both["digests"]] == ["a", "b"]


def test_steps_begin_at_zero_where_a_memory_does():
    pair = Pair(policy("a", RECURRENT))
    with serving(pair) as running:
        steps = [running.act(observation=OBSERVATION, episode="e")[1]["t"] for _ in range(2)]
        swap(running, pair, "b", spec=RECURRENT)
        steps.append(running.act(observation=OBSERVATION, episode="e")[1]["t"])
        swap(running, pair, "c", spec=RECURRENT)
        steps += [running.act(observation=OBSERVATION, episode="e")[1]["t"] for _ in range(2)]
    assert steps == [0, 1, 2, 0, 1]


def listed(array: NDArray[Any] | None) -> Any:
    return None if array is None else array.tolist()


TOGETHER = [
    {"observation": OBSERVATION, "mask": [True, False, True]},
    {"observation": OBSERVATION},
    {"observations": [OBSERVATION] * 2, "masks": [None, [0, 0, 1]]},
    {"observation": OBSERVATION, "mask": [False, True, False]},
]


@pytest.mark.parametrize("wrong", [None, {"observation": OBSERVATION, "mask": [False] * 3}])
def test_questions_that_come_together_fit_as_each_does_alone(wrong: dict[str, Any] | None):
    bodies = [json.dumps(body).encode() for body in (*TOGETHER, *([wrong] if wrong else []))]
    fitting = Fitting(SPEC)
    together, alone = ([parse(body, 2) for body in bodies] for _ in range(2))
    fitting.fit(together)
    for question in alone:
        fitting.fit([question])
    for one, other in zip(together, alone, strict=True):
        assert (one.problem and one.problem.code) == (other.problem and other.problem.code)
        assert listed(one.array) == listed(other.array)
        assert listed(one.mask_rows) == listed(other.mask_rows)
    assert [question.problem is None for question in together] == [True] * 4 + [False] * bool(wrong)


def test_each_row_of_a_batch_keeps_its_seed_whoever_answers_it():
    rows = np.random.default_rng(0).normal(size=(12, 4)).round(3).tolist()
    names = [f"e{i}" for i in range(12)]
    with two_servers(canary_ms=10_000) as (stable, canary):
        send_to(stable, canary.port, 0.5, salt="s")
        _, answer = stable.act(observations=rows, episodes=names, seed=2**63 - 1)
        send_to(stable, canary.port, 0.0, 2, salt="s")
        servers = {"stable": stable, "canary": canary}
        alone = [
            servers[arm].act(observations=[row], seeds=[2**63 - 1 + i])[1]["logProbabilities"][0]
            for i, (row, arm) in enumerate(zip(rows, answer["arms"], strict=True))
        ]
    assert set(answer["arms"]) == {"stable", "canary"}
    assert answer["fallbacks"] == [None] * 12
    assert answer["logProbabilities"] == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("seeds", [[1], [1, True], [1, -1], [1, 2**64], 5, [1, None]])
def test_wrong_seeds_are_refused(seeds: Any):
    with serving(Pair(policy())) as running:
        assert running.act(observations=[OBSERVATION] * 2, seeds=seeds)[1]["error"]["code"] in (
            "bad-field",
            "bad-json",
        )


def test_what_a_canary_answers_is_logged_where_the_client_asked():
    theirs, ours = Kept(), Kept()
    with (
        serving(Pair(policy("c")), theirs) as canary,
        serving(Pair(policy("a")), ours, canary_ms=10_000) as stable,
    ):
        send_to(stable, canary.port, 1.0)
        _, answer = stable.act(observation=OBSERVATION, episode="e")
    (row,) = ours.rows
    assert theirs.rows == []
    assert (row.id, row.digest, row.arm, row.t) == (answer["id"], "c" * 64, "canary", 0)
    assert (row.action, row.log_probability) == (answer["action"], answer["logProbability"])


def test_a_canary_that_comes_too_late_logs_nothing():
    theirs, ours = Kept(), Kept()

    def late(decisions: Any) -> Any:
        time.sleep(0.3)
        return decisions

    slow = Broken(policy("c"), late)
    with serving(Pair(slow), theirs) as canary, serving(Pair(policy("a")), ours, canary_ms=50) as stable:
        send_to(stable, canary.port, 1.0)
        _, answer = stable.act(observation=OBSERVATION, id="mine")
        # Answered in order on one loop: the late answer is behind us then.
        canary.act(observation=OBSERVATION)
        rows = [row.id for row in theirs.rows]
    assert (answer["fallback"], answer["digest"][0]) == ("stable", "a")
    assert [(row.id, row.digest[0], row.fallback) for row in ours.rows] == [("mine", "a", "stable")]
    assert len(slow.batches) == 2
    assert len(rows) == 1
    assert "mine" not in rows


def test_what_a_route_gives_to_the_canary_is_counted_and_logged_there():
    kept = Kept()
    with serving(Pair(policy("c")), kept) as canary:
        body = {"observation": OBSERVATION, "episode": "e"}
        _, answer = canary.request("POST", "/v1/act", body, {"ratchet-arm": "canary"})
        _, other = canary.request("POST", "/v1/act", body, {"ratchet-arm": "stable"})
    assert (answer["arm"], other["arm"]) == ("canary", "stable")
    assert [row.arm for row in kept.rows] == ["canary", "stable"]
