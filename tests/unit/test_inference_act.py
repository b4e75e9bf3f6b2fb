"""Questions and answers: what is asked together, what is refused, and that every answer is valid."""

import json
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policyserver import RECURRENT, SPEC, Broken, Kept, Pair, Running, answers, policy, post, serving

from ratchet.api.v1alpha1.serverstats import EvaluatedActions, ServerStats
from ratchet.policies import PolicySpec, SpaceSpec

OBSERVATION = [0.1, -0.2, 0.3, 0.4]


@pytest.fixture(scope="module")
def running():
    with serving(Pair(policy())) as running:
        yield running


def test_an_answer_says_what_was_done_and_by_whom(running: Running):
    status, answer = running.act(observation=OBSERVATION, deterministic=True)

    decided = policy().decide(
        np.array([OBSERVATION], np.float32),
        deterministic=np.array([True]),
        temperature=np.ones(1, np.float32),
        seeds=[None],
    )
    assert status == 200
    assert answer["action"] == decided.action[0]
    assert answer["logProbability"] == pytest.approx(float(decided.log_probability[0]))
    assert (answer["digest"], answer["arm"], answer["fallback"]) == ("a" * 64, "stable", None)
    assert answer["value"] is None
    assert answer["id"]


def test_a_batch_is_answered_in_columns_as_each_row_alone(running: Running):
    rows = np.random.default_rng(1).normal(size=(9, 4)).round(3).tolist()
    _, many = running.act(observations=rows, seed=5)
    alone = [running.act(observation=row, seed=5 + i)[1]["action"] for i, row in enumerate(rows)]
    assert many["actions"] == alone
    assert len(set(many["ids"])) == 9


def test_a_mask_is_kept_and_the_same_id_comes_back(running: Running):
    for allowed in range(3):
        mask = [i == allowed for i in range(3)]
        _, answer = running.act(observation=OBSERVATION, mask=mask, id="mine")
        assert (answer["action"], answer["id"]) == (allowed, "mine")
        assert answer["logProbability"] == 0


def test_steps_of_an_episode_are_counted(running: Running):
    steps = [running.act(observation=OBSERVATION, episode="counted")[1]["t"] for _ in range(3)]
    assert steps == [0, 1, 2]


REFUSED: list[tuple[bytes, int, str]] = [
    (b"", 400, "bad-json"),
    (b"{", 400, "bad-json"),
    (b"[" * 100_000, 400, "bad-json"),
    (b'{"observation": ' + b"[" * 900 + b"]" * 900 + b"}", 400, "wrong-shape"),
    (b'{"observation": [1, 2, 3, NaN]}', 400, "bad-json"),
    (b'{"observation": [1, 2, 3, Infinity]}', 400, "bad-json"),
    (b'{"observation": [1, 2, 3, 1e999]}', 400, "bad-json"),
    (b'{"observation": [1, 2, 3, 1e300]}', 400, "not-finite"),
    (b'{"observation": [1, 2, 3, "\xff"]}', 400, "bad-json"),
    (b'{"observation": [1, 2, 3, "4"]}', 400, "wrong-type"),
    (b'{"observation": [1, 2, 3, null]}', 400, "wrong-type"),
    (b'{"observation": ["1.5", 2, 3, 4]}', 400, "wrong-type"),
    (b'{"observation": "1234"}', 400, "wrong-type"),
    (b'{"observations": ["", [1, 2, 3, 4]]}', 400, "wrong-type"),
    (b'{"observation": [1, 2, 3]}', 400, "wrong-shape"),
    (b'{"observation": 1}', 400, "wrong-shape"),
    (b'{"observation": [1, 2, 3, [4]]}', 400, "wrong-shape"),
    (b'{"observation": [[1, 2, 3, 4]]}', 400, "wrong-shape"),
    (b'{"observation": [[1], [2, 3]]}', 400, "wrong-shape"),
    (b'{"observation": {}}', 400, "wrong-type"),
    (b'{"observations": []}', 400, "bad-field"),
    (b'{"observations": [[1, 2, 3, 4], [1, 2]]}', 400, "wrong-shape"),
    (b'{"observations": [[1, 2, 3, 4]], "masks": []}', 400, "bad-field"),
    (b'{"observations": [[1, 2, 3, 4]], "masks": [[0, 0, 0]]}', 400, "empty-mask"),
    (b'{"observations": [[1,2,3,4],[1,2,3,4]], "episodes": ["e", "e"]}', 400, "bad-field"),
    (b'{"observation": [1, 2, 3, 4], "mask": [false, false, false]}', 400, "empty-mask"),
    (b'{"observation": [1, 2, 3, 4], "mask": [true]}', 400, "bad-mask"),
    (b'{"observation": [1, 2, 3, 4], "mask": [1, 1, 2]}', 400, "bad-mask"),
    (b'{"observation": [1, 2, 3, 4], "episode": 7}', 400, "bad-field"),
    (b'{"observation": [1, 2, 3, 4], "temperature": 0}', 400, "bad-field"),
    (b'{"observation": [1, 2, 3, 4], "seed": -1}', 400, "bad-field"),
    (b'{"observation": [1, 2, 3, 4], "deterministic": 1}', 400, "bad-field"),
    (b'{"observation": [1, 2, 3, 4], "colour": 1}', 400, "unknown-field"),
    (b'{"obs": [1, 2, 3, 4]}', 400, "no-observation"),
    (b"[]", 400, "bad-body"),
    (b'{"observations": [' + b"1," * 5000 + b"1]}", 413, "large-batch"),
]


@pytest.mark.parametrize(("body", "status", "code"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_is_wrong_is_refused_with_what_to_send(running: Running, body: bytes, status: int, code: str):
    found, answer = running.request("POST", "/v1/act", body)
    assert (found, answer["error"]["code"]) == (status, code)
    assert len(answer["error"]["message"]) > 10


@pytest.mark.parametrize("path", ["/v1/act", "/v2/models/policy/infer"])
@pytest.mark.parametrize("space", [SPEC.observation, SpaceSpec(kind="Discrete", n=5, dtype="int64")])
def test_text_takes_no_more_room_than_it_has(path: str, space: SpaceSpec):
    """As an array of numpy, each of the 4,096 texts would have the length of the longest: 8 GB."""
    texts = ["a" * 500_000, *[""] * 4095]
    tensor = {"name": "observation", "datatype": "FP32", "shape": [4096], "data": texts}
    body = {"observations": texts} if path == "/v1/act" else {"inputs": [tensor]}
    with serving(Pair(policy("a", SPEC.model_copy(update={"observation": space})))) as running:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), hard))
        try:
            status, answer = running.request("POST", path, body)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert status == 400
    assert "only numbers" in str(answer["error"])


def test_a_wrong_question_does_not_touch_those_that_come_with_it(running: Running):
    good = post('{"observation": [1, 2, 3, 4]}')
    with running.connect() as connection:
        connection.sendall(good + post('{"observation": [1]}') + good + post("{") + good)
        found = answers(connection, 5)
    assert [status for status, _ in found] == [200, 400, 200, 400, 200]


def test_what_arrives_together_is_decided_together():
    watched = Broken(policy(), lambda decisions: decisions)
    with serving(Pair(watched), max_batch=64) as running, running.connect() as connection:
        connection.sendall(post('{"observation": [1, 2, 3, 4]}') * 100)
        found = answers(connection, 100)
    assert [status for status, _ in found] == [200] * 100
    assert sum(watched.batches) == 100
    assert max(watched.batches) <= 64
    assert len(watched.batches) < 50


def _spoiled(**columns: Any):
    return lambda decisions: decisions._replace(
        **{name: change(getattr(decisions, name).copy()) for name, change in columns.items()}
    )


def _second_is(value: float):
    def change(column: Any) -> Any:
        column[1:2] = value
        return column

    return change


def _all_nan(decisions: Any) -> Any:
    return decisions._replace(log_probability=decisions.log_probability * np.nan)


FAILURES = {
    "nan": _spoiled(log_probability=_second_is(np.nan)),
    "mask-violation": _spoiled(action=_second_is(0)),
    "invalid-action": _spoiled(action=_second_is(7)),
}


@pytest.mark.parametrize("reason", FAILURES)
def test_a_row_that_fails_is_answered_by_the_previous_policy_and_no_other_is(reason: str):
    with serving(Pair(Broken(policy("b"), FAILURES[reason]), policy("a"))) as running:
        masks = [[False, True, True]] * 3
        _, answer = running.act(observations=[OBSERVATION] * 3, masks=masks)
        arm = next(arm for arm in running.stats()["arms"] if arm["digest"] == "b" * 64)
    assert answer["fallbacks"] == [None, "previous", None]
    assert [digest[0] for digest in answer["digests"]] == ["b", "a", "b"]
    assert set(answer["actions"]) <= {1, 2}
    assert arm["errors"] == {reason: 1}
    assert arm["fallbacks"] == {"previous": {reason: 1}}
    assert (arm["nanAnswers"], arm["maskViolations"]) == (reason == "nan", reason == "mask-violation")


def test_a_request_that_is_too_old_is_not_given_to_another_policy():
    broken = Broken(policy("b"), FAILURES["nan"])
    with serving(Pair(broken, policy("a")), fallback_ms=0) as running:
        _, answer = running.act(observations=[OBSERVATION] * 3, masks=[[False, True, True]] * 3)
    assert answer["fallbacks"] == [None, "scripted", None]
    assert answer["actions"][1] == 1


def _raise(_: Any) -> Any:
    raise RuntimeError("this policy never decides")


def test_when_no_policy_answers_the_scripted_action_does():
    with serving(Pair(Broken(policy("b"), _raise), Broken(policy("a"), _raise))) as running:
        status, answer = running.act(observation=OBSERVATION, mask=[False, False, True])
        arm = running.stats()["arms"][0]
    assert status == 200
    assert (answer["action"], answer["fallback"], answer["digest"]) == (2, "scripted", "scripted")
    assert answer["logProbability"] == 0
    assert arm["fallbacks"] == {"scripted": {"policy-error": 1}}


def test_a_row_that_every_policy_fails_at_gets_the_scripted_action_alone():
    with serving(Pair(Broken(policy("b"), _all_nan), Broken(policy("a"), FAILURES["nan"]))) as running:
        _, answer = running.act(observations=[OBSERVATION] * 3, masks=[[False, True, True]] * 3)
        fallbacks = running.stats()["arms"][0]["fallbacks"]
    assert answer["fallbacks"] == ["previous", "scripted", "previous"]
    assert answer["actions"][1] == 1
    assert fallbacks == {"previous": {"nan": 2}, "scripted": {"nan": 1}}


SPACES = {
    "Discrete": SpaceSpec(kind="Discrete", n=4, start=3, dtype="int64"),
    "MultiDiscrete": SpaceSpec(kind="MultiDiscrete", shape=(2,), nvec=(2, 3), start=(1, 0), dtype="int64"),
    "MultiBinary": SpaceSpec(kind="MultiBinary", shape=(3,), n=None, dtype="int8"),
    "Box": SpaceSpec(kind="Box", shape=(2,), low=(-1.0, 0.0), high=1.0),
}


@pytest.mark.parametrize("action", SPACES)
def test_every_space_of_actions_is_served_within_its_bounds(action: str):
    space = SPACES[action]
    spec = PolicySpec(observation=SpaceSpec(kind="Discrete", n=5, start=2, dtype="int64"), action=space)
    body: dict[str, Any] = {"observations": [2, 3, 6] * 20}
    if action != "Box":
        mask = [True] * space.outputs
        mask[1] = False
        body["masks"] = [mask] * 60
    with serving(Pair(policy("a", spec))) as running:
        status, answer = running.act(**body)
        wrong = running.act(observation=7)
        arm = running.stats()["arms"][0]
    assert status == 200
    assert wrong[1]["error"]["code"] == "out-of-range"
    assert answer["fallbacks"] == [None] * 60
    actions = np.array(answer["actions"])
    assert actions.shape == (60, *space.shape)
    match action:
        case "Discrete":
            assert set(actions.tolist()) <= {3, 5, 6}
        case "MultiDiscrete":
            assert set(actions[:, 0].tolist()) == {1}
            assert set(actions[:, 1].tolist()) <= {0, 1, 2}
        case "MultiBinary":
            assert set(actions[:, 1].tolist()) == {0}
        case _:
            assert (actions >= [-1, 0]).all()
            assert (actions <= 1).all()
            assert arm["actions"]["mean"] == pytest.approx(actions.mean(axis=0).tolist(), abs=1e-6)
            assert arm["actions"]["m2"] == pytest.approx((actions.var(axis=0) * 60).tolist(), abs=1e-5)


def test_a_recurrent_policy_remembers_each_episode_for_itself():
    served = policy("a", RECURRENT)
    rows = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
    states, wanted = None, []
    for row in rows:
        decided = served.decide(
            row[None],
            deterministic=np.array([False]),
            temperature=np.ones(1, np.float32),
            seeds=[7],
            states=states,
        )
        states = decided.states
        wanted.append(float(decided.log_probability[0]))
    with serving(Pair(policy("a", RECURRENT))) as running, running.connect() as connection:
        bodies = [
            json.dumps({"observation": row.tolist(), "episode": name, "seed": 7})
            for row in rows
            for name in ("one", "two")
        ]
        # All at once: steps of one episode still follow each other.
        connection.sendall(b"".join(post(body) for body in bodies))
        found = [answer["logProbability"] for _, answer in answers(connection, 10)]
        refused = running.act(observation=OBSERVATION)
    assert len(set(wanted)) == 5
    assert found[0::2] == pytest.approx(wanted, abs=1e-5)
    assert found[1::2] == pytest.approx(wanted, abs=1e-5)
    assert refused[1]["error"]["code"] == "no-episode"


def test_an_episode_keeps_its_policy_through_a_swap_and_new_ones_take_the_new():
    pair = Pair(policy("a"))
    with serving(pair) as running:
        running.act(observation=OBSERVATION, episode="old")

        def swap() -> None:
            pair.previous, pair.current = pair.current, policy("b")

        running.call(swap)
        old = running.act(observation=OBSERVATION, episode="old")[1]
        new = running.act(observation=OBSERVATION, episode="new")[1]
        running.call(swap)  # `a` is gone
        gone = running.act(observation=OBSERVATION, episode="old")[1]
    assert (old["digest"][0], old["t"]) == ("a", 1)
    assert (new["digest"][0], new["t"]) == ("b", 0)
    assert (gone["digest"][0], gone["t"]) == ("b", 2)


def test_load_is_shed_before_the_queue_grows_and_each_request_is_answered():
    def slow(decisions: Any) -> Any:
        end = time.perf_counter() + 0.01
        while time.perf_counter() < end:
            pass
        return decisions

    with serving(Pair(Broken(policy(), slow)), max_delay_ms=20, max_batch=1) as running:
        with ThreadPoolExecutor(8) as pool:

            def ask(_: int) -> list[int]:
                with running.connect() as connection:
                    connection.sendall(post('{"observation": [1, 2, 3, 4]}') * 10)
                    return [status for status, _ in answers(connection, 10)]

            statuses = [status for each in pool.map(ask, range(16)) for status in each]
        shed = running.stats()["shed"]
    assert len(statuses) == 160
    assert set(statuses) == {200, 503}
    assert shed == statuses.count(503)


def test_each_decision_is_logged_once_with_what_it_was_decided_from():
    kept = Kept()
    with serving(Pair(policy()), kept) as running:
        _, answer = running.act(observation=OBSERVATION, episode="e", mask=[True, True, False])
        running.act(observation=[1])
    (row,) = kept.rows
    assert (row.id, row.digest, row.arm, row.episode, row.t) == (answer["id"], "a" * 64, "stable", "e", 0)
    assert row.action == answer["action"]
    assert row.log_probability == answer["logProbability"]
    assert np.array(row.observation).tolist() == pytest.approx(OBSERVATION)
    assert np.array(row.mask).tolist() == [True, True, False]
    assert row.fallback is None


def test_a_deterministic_answer_is_remembered_and_a_sampled_one_is_not():
    watched = Broken(policy(), lambda decisions: decisions)
    pair = Pair(watched)
    with serving(pair, response_cache=2) as running:
        first = running.act(observation=OBSERVATION, deterministic=True)[1]
        again = running.act(observation=OBSERVATION, deterministic=True)[1]
        assert len(watched.batches) == 1
        assert (again["action"], again["logProbability"]) == (first["action"], first["logProbability"])
        assert again["id"] != first["id"]
        forbidden = [i != first["action"] for i in range(3)]
        assert (
            running.act(observation=OBSERVATION, deterministic=True, mask=forbidden)[1]["action"]
            != first["action"]
        )
        running.act(observation=OBSERVATION)
        assert len(watched.batches) == 3
        running.act(observations=[[0, 0, 0, i] for i in range(4)], deterministic=True)
        running.act(observation=OBSERVATION, deterministic=True)  # was pushed out
        assert len(watched.batches) == 5
        running.call(lambda: setattr(pair, "current", policy("b", seed=1)))
        assert running.act(observation=OBSERVATION, deterministic=True)[1]["digest"][0] == "b"


def test_stats_are_of_their_schema_and_count_every_request():
    with serving(Pair(policy())) as running:
        for _ in range(3):
            running.act(observations=[OBSERVATION] * 2)
        running.act(observation=[1])
        stats = ServerStats.model_validate(running.stats())
    (arm,) = stats.arms
    assert (arm.requests, arm.predictions, sum(arm.latency.counts)) == (3, 6, 3)
    assert sum(arm.actions.counts or []) == 6
    assert stats.refusals == {"wrong-shape": 1}
    assert (stats.ready, stats.current) == (True, "a" * 64)


def test_stats_tell_how_actions_were_asked_for_and_what_the_policy_did_in_its_evaluation():
    did = EvaluatedActions(
        episodes=20, decisions=90, deterministic=True, counts=(40, 50, 0), error=(0.1, 0.1, 0.0)
    )
    known = policy()
    known.evaluated = did
    with serving(Pair(known)) as running:
        running.act(observations=[OBSERVATION] * 2)
        running.act(observation=OBSERVATION, deterministic=True)
        stats = ServerStats.model_validate(running.stats())
    assert (stats.arms[0].actions.number, stats.arms[0].actions.deterministic) == (3, 1)
    assert stats.evaluated == did
    with serving(Pair(policy()), deterministic=True) as running:
        running.act(observation=OBSERVATION)
        stats = ServerStats.model_validate(running.stats())
    assert stats.arms[0].actions.deterministic == 1
    assert stats.evaluated is None


def test_without_a_policy_the_server_says_so():
    with serving(Pair()) as running:
        assert running.act(observation=OBSERVATION)[0] == 503
        assert running.request("GET", "/readyz")[0] == 503
        assert running.request("GET", "/healthz")[0] == 200
