"""A request that comes again under its id: one decision, one step, one row of the log, for a while."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from policyserver import RECURRENT, Kept, Pair, policy, send_to, serving
from ratchet_inference.problems import Problem
from ratchet_inference.retried import ENTRY, Reply, Retried
from test_inference_routing import GOOD, http_answer, stand_in

OBSERVATION = [0.1, -0.2, 0.3, 0.4]
ASK = {"observation": OBSERVATION, "episode": "e", "id": "one"}


def test_the_same_request_gets_the_same_answer_and_makes_no_second_step():
    log = Kept()
    with serving(Pair(policy("a", RECURRENT)), log) as running:
        first, again = running.act(**ASK), running.act(**ASK)
        after = running.act(**{**ASK, "id": "two"})
        repeated = running.stats()["repeated"]
    assert again == first
    assert (first[1]["t"], after[1]["t"]) == (0, 1)
    assert [row.id for row in log.rows] == ["one", "two"]
    assert repeated == 1


def test_a_request_that_comes_again_elsewhere_gets_the_same_actions():
    batch = {"observations": [OBSERVATION] * 32, "ids": [f"d{i}" for i in range(32)]}
    again = {**batch, "ids": [f"other{i}" for i in range(32)]}
    with serving(Pair(policy())) as one, serving(Pair(policy())) as other:
        first, second, different = one.act(**batch)[1], other.act(**batch)[1], other.act(**again)[1]
    assert len(set(first["actions"])) > 1
    assert (second["actions"], second["logProbabilities"]) == (first["actions"], first["logProbabilities"])
    assert different["actions"] != first["actions"]


def test_a_batch_that_comes_again_is_one_too():
    with serving(Pair(policy())) as running:
        batch = {"observations": [OBSERVATION] * 2, "episodes": ["e", "f"], "ids": ["x", "y"]}
        assert running.act(**batch) == running.act(**batch)
        assert running.act(**ASK)[1]["t"] == 1


@pytest.mark.parametrize("other", [{"mask": [False, True, False]}, {"id": "two"}, {"id": None}])
def test_another_request_is_another_decision(other: dict[str, Any]):
    with serving(Pair(policy())) as running:
        steps = [running.act(**body)[1]["t"] for body in (ASK, {**ASK, **other})]
    assert steps == [0, 1]


def test_without_an_id_nothing_is_remembered():
    with serving(Pair(policy())) as running:
        steps = [running.act(observation=OBSERVATION, episode="e")[1]["t"] for _ in range(2)]
        assert running.stats()["repeated"] == 0
    assert steps == [0, 1]


def test_it_can_be_left_out():
    with serving(Pair(policy()), retry_memory=0) as running:
        assert [running.act(**ASK)[1]["t"] for _ in range(2)] == [0, 1]


def test_a_request_that_comes_again_before_its_answer_waits_for_it():
    gate, asked = threading.Event(), threading.Semaphore(0)

    def held(_: bytes) -> bytes:
        asked.release()
        gate.wait(20)
        return http_answer(GOOD)

    with stand_in(held) as port, serving(Pair(policy())) as running, ThreadPoolExecutor(2) as pool:
        send_to(running, port, 1.0)
        both = [pool.submit(running.act, **ASK) for _ in range(2)]
        assert asked.acquire(timeout=20)
        end = time.monotonic() + 20
        while running.stats()["repeated"] < 1 and time.monotonic() < end:
            time.sleep(0.001)
        gate.set()
        first, again = (one.result() for one in both)
        assert not asked.acquire(blocking=False)
    assert first == again
    assert first[1]["arm"] == "canary"


def test_what_could_not_be_answered_is_asked_again():
    pair = Pair()
    with serving(pair) as running:
        assert running.act(**ASK)[0] == 503
        running.call(lambda: setattr(pair, "current", policy()))
        assert running.act(**ASK)[0] == 200
        wrong = {**ASK, "observation": [1]}
        assert [running.act(**wrong)[0] for _ in range(2)] == [400, 400]


def test_a_canary_that_two_servers_ask_for_one_client_makes_one_step():
    """The client's first server died with the answer; the second one asks the canary again."""
    with (
        serving(Pair(policy("c", RECURRENT))) as canary,
        serving(Pair(policy("a", RECURRENT))) as one,
        serving(Pair(policy("a", RECURRENT))) as other,
    ):
        for running in (one, other):
            send_to(running, canary.port, 1.0)
        first, again = one.act(**ASK)[1], other.act(**ASK)[1]
        after = other.act(**{**ASK, "id": "two"})[1]
    assert again == first
    assert (first["arm"], after["t"]) == ("canary", 1)


# The memory alone


def ask(retried: Retried, body: bytes, now: float = 0.0) -> tuple[Reply | None, list[Any]]:
    got: list[Any] = []
    return retried.first(body, now, got.append), got


def answer(retried: Retried, body: bytes, now: float = 0.0, with_: bytes | Problem = b"yes") -> None:
    finish, _ = ask(retried, body, now)
    assert finish is not None
    finish(with_)


@pytest.mark.parametrize(("later", "known"), [(5, True), (10.1, False), (1000, False)])
def test_after_a_while_the_same_request_is_a_new_one(later: float, known: bool):
    retried = Retried(1 << 20, seconds=5)
    answer(retried, b"x", now=0)
    assert (ask(retried, b"x", now=later)[1] == [b"yes"]) == known


def test_one_that_is_asked_for_now_and_then_does_not_stay_for_ever():
    retried = Retried(1 << 20, seconds=5)
    answer(retried, b"x", now=0)
    repeats = [ask(retried, b"x", now=second)[0] is None for second in range(1, 13)]
    assert repeats == sorted(repeats, reverse=True)
    assert not repeats[-1]


def test_what_was_asked_longest_ago_makes_room():
    retried = Retried(20 * ENTRY)
    for number in range(100):
        answer(retried, b"%d" % number)
    assert ask(retried, b"99")[1] == [b"yes"]
    assert ask(retried, b"95")[1] == [b"yes"]
    assert ask(retried, b"70")[0] is not None


def test_the_bytes_of_large_answers_count():
    retried = Retried(10 * ENTRY)
    answer(retried, b"x", with_=b"y" * 10 * ENTRY)
    answer(retried, b"z", with_=b"y" * 10 * ENTRY)
    answer(retried, b"w")
    assert ask(retried, b"x")[0] is not None


def test_a_request_that_was_forgotten_before_its_answer_is_answered_all_the_same():
    retried = Retried(4 * ENTRY)
    first, got = ask(retried, b"x")
    _, repeated = ask(retried, b"x")
    for number in range(20):
        answer(retried, b"%d" % number)
    assert first is not None
    first(b"late")
    assert (got, repeated) == ([b"late"], [b"late"])
    assert retried.repeats == 1


def test_who_waits_for_what_fails_is_told_so():
    retried = Retried(10 * ENTRY)
    problem = Problem(503, "overloaded", "later")
    first, got = ask(retried, b"x")
    _, other = ask(retried, b"x")
    assert first is not None
    first(problem)
    assert (got, other) == ([problem], [problem])
    assert ask(retried, b"x")[0] is not None
