"""Copies for a shadow: who gets them, what is counted, and that no client ever notices."""

import threading
import time
from typing import Any

import numpy as np
import pytest
import websocket
from policyserver import (
    RECURRENT,
    SPEC,
    Broken,
    Kept,
    Pair,
    Running,
    eventually,
    policy,
    send_to,
    serving,
    tallies,
    two_servers,
)
from ratchet_inference.decisions.rewards import Rewards, RewardSettings
from ratchet_inference.dispatch import share
from servedpolicies import CARTPOLE, observations, random_parameters
from test_inference_routing import GOOD_BATCH_ROW, http_answer, stand_in

from ratchet.policies.artifact import PolicyLineage, make

OBSERVATION = [0.1, -0.2, 0.3, 0.4]
A, C = "a" * 64, "c" * 64


def copied(running: Running) -> int:
    """Observations of which the shadow's answer has come, or is known not to come."""
    return sum(one["predictions"] + sum(one["errors"].values()) for one in tallies(running, "shadow"))


def test_the_canary_gets_copies_and_the_client_its_own_answer():
    with two_servers() as (stable, canary):
        send_to(stable, canary.port, 0.0, mirror=1.0, digest=C)
        _, one = stable.act(observation=OBSERVATION, episode="e", id="mine")
        _, many = stable.act(observations=[OBSERVATION] * 3, masks=[[False, True, False]] * 3)
        eventually(lambda: copied(stable) == 4)
        (seen,), (there,) = tallies(stable, "shadow"), tallies(canary, "shadow")
        others = tallies(stable, "canary") + tallies(canary, "canary") + tallies(canary, "stable")
    assert (one["digest"], one["arm"], one["id"], one["fallback"]) == (A, "stable", "mine", None)
    assert (many["arms"], many["actions"]) == (["stable"] * 3, [1] * 3)
    assert (seen["digest"], seen["requests"], seen["predictions"], seen["errors"]) == (C, 2, 4, {})
    assert seen["actions"]["counts"][1] >= 3
    assert (there["digest"], there["requests"], there["predictions"]) == (C, 2, 4)
    assert others == []


def test_the_same_episodes_are_copied_at_each_step():
    with two_servers() as (stable, canary):
        send_to(stable, canary.port, 0.0, mirror=0.3, salt="s")
        names = [f"e{i}" for i in range(50)]
        for _ in range(2):
            stable.act(observations=[OBSERVATION] * 50, episodes=names)
        chosen = sum(share("s\0mirror", name) < 0.3 for name in names)
        eventually(lambda: copied(stable) == 2 * chosen)
        assert canary.stats()["sessions"] == chosen


def test_only_what_is_answered_here_is_copied():
    with two_servers() as (stable, canary):
        send_to(stable, canary.port, 0.5, mirror=1.0, salt="s")
        names = [f"e{i}" for i in range(40)]
        _, answer = stable.act(observations=[OBSERVATION] * 40, episodes=names)
        own = answer["arms"].count("stable")
        eventually(lambda: copied(stable) == own)
    assert 0 < own < 40


def test_a_copy_is_not_logged_and_waits_for_no_reward():
    log = Kept()
    rewards = Rewards(None, RewardSettings(), time.time)
    with serving(Pair(policy("c")), log, rewards) as canary, serving(Pair(policy("a"))) as stable:
        send_to(stable, canary.port, 0.0, mirror=1.0)
        stable.act(observation=OBSERVATION, episode="e")
        eventually(lambda: copied(stable) == 1)
        episodes = canary.stats()["episodes"]
    assert (log.rows, episodes) == ([], [])


def test_a_copied_episode_has_a_memory_of_its_own():
    with (
        serving(Pair(policy("c", RECURRENT))) as canary,
        serving(Pair(policy("a"))) as stable,
    ):
        send_to(stable, canary.port, 0.0, mirror=1.0)
        for step in range(3):
            stable.act(observation=OBSERVATION, episode="e")
            eventually(lambda wanted=step + 1: copied(stable) == wanted)
        (seen,) = tallies(stable, "shadow")
        first = canary.act(observation=OBSERVATION, episode="e")[1]
        assert canary.stats()["sessions"] == 2
    assert (seen["predictions"], seen["errors"], first["t"]) == (3, {}, 0)


WRONG: dict[str, tuple[str, bytes | None]] = {
    "rubbish": ("canary-invalid", http_answer(b"\xff")),
    "500": ("canary-error", http_answer({}, 500)),
    "gone": ("canary-unreachable", None),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_a_shadow_does_wrong_is_counted_there_alone(kind: str):
    reason, found = WRONG[kind]
    with stand_in(lambda _: found) as port, serving(Pair(policy("a"))) as stable:
        send_to(stable, port, 0.0, mirror=1.0, digest=C)
        for number in range(3):
            _, answer = stable.act(observation=OBSERVATION)
            assert (answer["arm"], answer["fallback"]) == ("stable", None)
            eventually(lambda wanted=number + 1: copied(stable) == wanted)
        (seen,), (own,) = tallies(stable, "shadow"), tallies(stable, "stable")
    assert (seen["digest"], seen["errors"], seen["fallbacks"]) == (C, {reason: 3}, {})
    assert (own["requests"], own["errors"], own["fallbacks"]) == (3, {}, {})


def test_a_shadow_that_breaks_its_mask_is_counted():
    names = {"action": "actions", "logProbability": "logProbabilities", "digest": "digests",
             "value": "values", "t": "ts", "fallback": "fallbacks"}  # fmt: skip
    body = {names[key]: [value] for key, value in GOOD_BATCH_ROW.items() if key in names}
    with stand_in(lambda _: http_answer(body)) as port, serving(Pair(policy("a"))) as stable:
        send_to(stable, port, 0.0, mirror=1.0, digest=C)
        stable.act(observation=OBSERVATION, mask=[True, False, True])
        eventually(lambda: copied(stable) == 1)
        (seen,) = tallies(stable, "shadow")
    assert (seen["errors"], seen["maskViolations"]) == ({"canary-mask-violation": 1}, 1)


def test_nan_of_a_shadow_is_counted_where_it_was_answered():
    broken = Broken(
        policy("c"), lambda decided: decided._replace(log_probability=decided.log_probability * np.nan)
    )
    with serving(Pair(broken)) as canary, serving(Pair(policy("a"))) as stable:
        send_to(stable, canary.port, 0.0, mirror=1.0)
        stable.act(observation=OBSERVATION)
        eventually(lambda: copied(stable) == 1)
        (seen,), (there,) = tallies(stable, "shadow"), tallies(canary, "shadow")
    assert seen["errors"] == {"canary-fallback": 1}
    assert there["nanAnswers"] == 1


def test_a_shadow_that_never_answers_costs_a_client_nothing():
    """Neither an answer nor more copies than are allowed on their way; those beyond are counted."""
    silent = threading.Event()

    def never(_: bytes) -> None:
        silent.wait(30)

    with stand_in(never) as port, serving(Pair(policy("a")), canary_ms=20_000, mirror_requests=2) as stable:
        send_to(stable, port, 0.0, mirror=1.0)
        answers = [stable.act(observation=OBSERVATION)[1] for _ in range(10)]
        dropped = stable.stats()["copiesDropped"]
        silent.set()
    assert {(answer["arm"], answer["fallback"]) for answer in answers} == {("stable", None)}
    assert dropped == 8


def test_a_wrong_question_is_not_copied():
    with two_servers() as (stable, canary):
        send_to(stable, canary.port, 0.0, mirror=1.0)
        assert stable.act(observation=[1])[0] == 400
        stable.act(observation=OBSERVATION)
        eventually(lambda: copied(stable) == 1)
        assert canary.stats()["refusals"] == {}


# What comes from elsewhere says so on every path


INFER = {"inputs": [{"name": "observation", "datatype": "FP32", "shape": [1, 4], "data": OBSERVATION}]}


@pytest.mark.parametrize(("arm", "logged"), [("canary", 2), ("shadow", 0)])
def test_the_other_protocols_read_the_arm_of_a_request_too(arm: str, logged: int):
    log = Kept()
    with serving(Pair(policy("a")), log) as running, serving(Pair(policy("c"))) as canary:
        send_to(running, canary.port, 1.0)
        running.request("POST", "/v2/models/policy/infer", INFER, {"ratchet-arm": arm})
        url = f"ws://127.0.0.1:{running.port}/v1/episode"
        socket = websocket.create_connection(url, timeout=20, header=[f"ratchet-arm: {arm}"])
        socket.send(f'{{"observation": {OBSERVATION}}}')
        answer: Any = socket.recv()
        socket.close()
        (seen,) = tallies(running, arm)
        # It was split before, so it goes no further.
        assert canary.stats()["arms"] == []
    assert A in answer
    assert (seen["requests"], len(log.rows)) == (2, logged)


def test_a_canary_of_other_spaces_is_refused_even_where_its_actions_would_do():
    fewer = SPEC.model_copy(update={"action": SPEC.action.model_copy(update={"n": 2})})
    with serving(Pair(policy("c", fewer))) as canary, serving(Pair(policy("a"))) as stable:
        send_to(stable, canary.port, 1.0)
        answer = stable.act(observation=OBSERVATION)[1]
        (seen,) = tallies(stable, "canary")
        spaces = stable.stats()["spaces"], canary.stats()["spaces"]
    assert (answer["digest"], answer["fallback"]) == (A, "stable")
    assert seen["errors"] == {"canary-spaces": 1}
    assert spaces[0] != spaces[1]


def test_a_server_says_where_its_policy_comes_from():
    known = PolicyLineage(job="cartpole", attempt=2, checkpoint="7-1-7", steps=7, config="sha256:c0")
    seen = observations(CARTPOLE, 5, np.random.default_rng(0))
    weights = make(CARTPOLE, random_parameters(CARTPOLE, 0), seen, known)
    with serving(Pair(weights.policy())) as server:
        assert server.stats()["lineage"] == {
            "job": "cartpole", "attempt": 2, "checkpoint": "7-1-7", "steps": 7, "configuration": "sha256:c0"
        }  # fmt: skip
    with serving(Pair(policy("a"))) as unknown, serving(Pair(None)) as empty:
        assert unknown.stats()["lineage"] is None
        assert empty.stats()["lineage"] is None


def test_policies_of_the_same_spaces_have_the_same_digest_of_them():
    with two_servers() as (stable, canary):
        assert stable.stats()["spaces"] == canary.stats()["spaces"]
        assert len(stable.stats()["spaces"]) == 64
    with serving(Pair()) as empty:
        assert empty.stats()["spaces"] is None


def test_an_arm_says_how_long_it_was_idle():
    with two_servers() as (stable, canary):
        stable.act(observation=OBSERVATION)
        (first,) = tallies(stable, "stable")
        send_to(stable, canary.port, 1.0)
        stable.act(observation=OBSERVATION)
        (own,), (theirs,) = tallies(stable, "stable"), tallies(stable, "canary")
    assert 0 <= first["secondsSinceRequest"] < own["secondsSinceRequest"]
    assert 0 <= theirs["secondsSinceRequest"] < own["secondsSinceRequest"]
