"""The canary hop: who is sent there, what happens when it is slow, dead or wrong, and that episodes stay."""

import asyncio
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policyserver import (
    RECURRENT,
    Broken,
    Pair,
    Running,
    eventually,
    policy,
    send_to,
    serving,
    tallies,
    two_servers,
)
from ratchet_inference.breaker import Breaker
from ratchet_inference.dispatch import share

OBSERVATION = [0.1, -0.2, 0.3, 0.4]


@contextmanager
def stand_in(answer: Callable[[bytes], bytes | None], port: int = 0) -> Generator[int]:
    """A server that answers each request with bytes, or closes the connection for None. Its port."""
    listener = socket.create_server(("127.0.0.1", port))

    def talk(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65_536):
                found = answer(data)
                if found is None:
                    return
                connection.sendall(found)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def http_answer(body: object, status: int = 200) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%b" % (status, len(content), content)


GOOD = {"id": "x", "action": 1, "logProbability": -0.5, "value": None, "digest": "c" * 64, "arm": "canary",
        "fallback": None, "episode": None, "t": None}  # fmt: skip

GOOD_BATCH_ROW: dict[str, Any] = {**GOOD, "value": 0.5, "t": 4}
GOOD_BATCH = {"ids": ["x", "y"], "actions": [1, 1], "logProbabilities": [-0.5] * 2, "values": [0.5, None],
              "digests": ["c" * 64] * 2, "arms": ["canary"] * 2, "fallbacks": None, "episodes": None,
              "ts": [4, 4]}  # fmt: skip


@given(st.text(min_size=1), st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_ramp_only_adds_episodes(episode: str, salt: str, one: float, other: float):
    low, high = sorted((one, other))
    assert 0 <= share(salt, episode) < 1
    assert not (share(salt, episode) < low) or share(salt, episode) < high


def test_shares_are_even_and_another_salt_chooses_others():
    episodes = [f"e{i}" for i in range(20_000)]
    first = np.array([share("one", episode) for episode in episodes])
    second = np.array([share("two", episode) for episode in episodes])
    assert abs((first < 0.1).mean() - 0.1) < 0.01
    assert abs(((first < 0.1) & (second < 0.1)).mean() - 0.01) < 0.004


def test_the_breaker_opens_and_allows_nobody_before_a_try_is_answered():
    breaker = Breaker(window=4, pause=1)
    breaker.failed(0)
    assert breaker.allows
    assert not breaker.tries(0)
    breaker.failed(0)
    assert not breaker.allows
    assert not breaker.tries(0.9)
    assert breaker.is_due(1)
    assert breaker.tries(1)
    assert not breaker.tries(1)
    breaker.failed(1)
    assert not breaker.tries(1.9)
    assert breaker.tries(2)
    assert not breaker.allows
    breaker.succeeded()
    assert breaker.state == "Closed"
    assert breaker.allows
    assert not breaker.tries(9)


def test_the_breaker_opens_sooner_for_a_server_that_gives_nothing_but_failures():
    breaker = Breaker(window=20, in_a_row=5)
    breaker.succeeded()
    for _ in range(4):
        breaker.failed(0)
    assert breaker.state == "Closed"
    breaker.failed(0)
    assert breaker.state == "Open"


def test_a_few_failures_among_many_answers_do_not_open_the_breaker():
    breaker = Breaker(window=10)
    for i in range(100):
        breaker.failed(i) if i % 4 == 0 else breaker.succeeded()
        assert breaker.allows


def test_the_canary_gets_its_share_and_each_episode_stays():
    with two_servers() as (stable, canary):
        send_to(stable, canary.port, 0.3, salt="s", digest="c" * 64)
        arms: dict[str, set[str]] = {}
        for _ in range(3):
            for i in range(60):
                answer = stable.act(observation=OBSERVATION, episode=f"e{i}")[1]
                arms.setdefault(f"e{i}", set()).add(answer["arm"])
                assert answer["digest"][0] == {"stable": "a", "canary": "c"}[answer["arm"]]
                assert answer["fallback"] is None
        (seen,) = tallies(stable, "canary")
    assert arms == {e: {"canary" if share("s", e) < 0.3 else "stable"} for e in arms}
    theirs = sum(arm == {"canary"} for arm in arms.values())
    assert (seen["requests"], seen["predictions"], seen["errors"]) == (3 * theirs, 3 * theirs, {})
    assert sum(seen["actions"]["counts"]) == 3 * theirs


def test_a_batch_is_split_between_the_arms_and_put_together_in_order():
    with two_servers() as (stable, canary):
        send_to(stable, canary.port, 0.5, salt="s")
        rows = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
        names = [f"e{i}" for i in range(40)]
        _, answer = stable.act(
            observations=rows.tolist(), episodes=names, masks=[[True, True, False]] * 40, deterministic=True
        )
    assert answer["arms"] == ["canary" if share("s", name) < 0.5 else "stable" for name in names]
    assert answer["episodes"] == names
    for row, digest, action in zip(rows, answer["digests"], answer["actions"], strict=True):
        decided = policy(digest[0], seed={"a": 0, "c": 1}[digest[0]]).decide(
            row[None],
            masks=np.array([[True, True, False]]),
            deterministic=np.array([True]),
            temperature=np.ones(1, np.float32),
            seeds=[None],
        )
        assert action == decided.action[0]


def test_without_episodes_each_request_is_sent_by_itself():
    with two_servers() as (stable, canary):
        send_to(stable, canary.port, 0.5)
        arms = Counter(stable.act(observation=OBSERVATION)[1]["arm"] for _ in range(100))
    assert 20 < arms["canary"] < 80


def test_an_episode_that_runs_is_not_moved_by_a_rollout_and_a_rollback_takes_all_at_once():
    with two_servers() as (stable, canary):
        stable.act(observation=OBSERVATION, episode="runs")
        send_to(stable, canary.port, 1.0, salt="s")
        assert stable.act(observation=OBSERVATION, episode="runs")[1]["arm"] == "stable"
        assert stable.act(observation=OBSERVATION, episode="new")[1]["arm"] == "canary"
        second = stable.act(observation=OBSERVATION, episode="new")[1]
        send_to(stable, canary.port, 0.0, 2, salt="s")
        back = stable.act(observation=OBSERVATION, episode="new")[1]
    assert (second["arm"], second["t"]) == ("canary", 1)
    assert (back["arm"], back["t"], back["digest"][0]) == ("stable", 2, "a")


RUBBISH: dict[str, tuple[str, bytes | None]] = {
    "not http": ("canary-invalid", b"hello there, this is no HTTP\r\n\r\n"),
    "not json": ("canary-invalid", http_answer(b"\xff\xfe")),
    "a list": ("canary-invalid", http_answer([])),
    "no fields": ("canary-invalid", http_answer({})),
    "500": ("canary-error", http_answer({}, 500)),
    "503": ("canary-error", http_answer({}, 503)),
    "gone": ("canary-unreachable", None),
}
COLUMNS = {"action": "actions", "logProbability": "logProbabilities", "value": "values", "digest": "digests",
           "fallback": "fallbacks", "t": "ts"}  # fmt: skip
NO_NUMBER: list[object] = [True, "1", [1], {}]
INVALID: dict[str, list[object]] = {
    "action": [9, -1, 0.5, 10**30, None, *NO_NUMBER],
    "logProbability": [None, *NO_NUMBER],
    "value": NO_NUMBER,
    "digest": [None, 5, True, ["c"]],
    "fallback": [5, True, ["scripted"], {}],
    "t": [1.5, 1e300, -1, *NO_NUMBER],
}
FIELDS: list[tuple[str, object, str]] = [
    *((name, value, "canary-invalid") for name, values in INVALID.items() for value in values),
    ("action", 0, "canary-mask-violation"),
    ("digest", "d" * 64, "canary-digest"),
    ("fallback", "scripted", "canary-fallback"),
]
# What a batch can hold in place of a whole column.
WHOLE: list[object] = [5, True, 0, "text", {}, {"0": 1}, [], [1], [[1], [1, 2]]]
WRONG = (
    RUBBISH
    | {f"{name} {x!r}": (reason, http_answer({**GOOD, name: x})) for name, x, reason in FIELDS}
    | {
        f"batch {name} {x!r}": (
            reason,
            http_answer({**GOOD_BATCH, COLUMNS[name]: [GOOD_BATCH_ROW[name], x]}),
        )
        for name, x, reason in FIELDS
    }
    | {
        f"column {name} {x!r}": ("canary-invalid", http_answer({**GOOD_BATCH, name: x}))
        for name in COLUMNS.values()
        for x in WHOLE
    }
)


@pytest.fixture(scope="module")
def one_stable():
    with serving(Pair(policy("a")), canary_ms=10_000) as stable:
        yield stable


@pytest.mark.parametrize("kind", WRONG)
def test_whatever_the_canary_answers_the_client_gets_a_valid_action(kind: str, one_stable: Running):
    reason, found = WRONG[kind]
    rows = 2 if kind.startswith(("batch", "column")) else 1
    body: dict[str, Any] = {"observation": OBSERVATION, "mask": [False, True, True]}
    if rows == 2:
        body = {f"{name}s": [value] * 2 for name, value in body.items()}
    with stand_in(lambda _: found) as port:
        generation = one_stable.server.dispatch.route.generation + 1
        send_to(one_stable, port, 1.0, generation, digest="c" * 64)
        before = {name: Counter(counts) for name, counts in failures(one_stable).items()}
        for _ in range(3):
            status, answer = one_stable.act(**body)
            assert status == 200
            if rows == 1:
                answer = {f"{name}s": [value] for name, value in answer.items()}
            assert answer["fallbacks"] == ["stable"] * rows
            assert answer["arms"] == ["canary"] * rows
            assert {digest[0] for digest in answer["digests"]} == {"a"}
            assert set(answer["actions"]) <= {1, 2}
    after = failures(one_stable)
    assert Counter(after["errors"]) - before["errors"] == {reason: 3 * rows}
    assert Counter(after["fallbacks"]) - before["fallbacks"] == {reason: 3 * rows}
    assert after["requests"]["all"] - before["requests"]["all"] == 3


def failures(running: Running) -> dict[str, dict[str, int]]:
    """What the canary that has the digest of the route failed at."""
    for one in tallies(running, "canary"):
        if one["digest"] == "c" * 64:
            return {"errors": one["errors"], "fallbacks": one["fallbacks"]["stable"],
                    "requests": {"all": one["requests"]}}  # fmt: skip
    return {"errors": {}, "fallbacks": {}, "requests": {}}


def test_a_batch_that_the_canary_answers_well_is_believed():
    with stand_in(lambda _: http_answer(GOOD_BATCH)) as port, serving(Pair(policy("a"))) as stable:
        send_to(stable, port, 1.0, digest="c" * 64)
        _, answer = stable.act(observations=[OBSERVATION] * 2, episodes=["p", "q"])
    assert (answer["fallbacks"], answer["actions"], answer["ts"]) == ([None] * 2, [1, 1], [4, 4])


def test_the_stand_in_itself_is_believed_when_it_answers_well():
    with stand_in(lambda _: http_answer(GOOD)) as port, serving(Pair(policy("a"))) as stable:
        send_to(stable, port, 1.0, digest="c" * 64)
        assert stable.act(observation=OBSERVATION)[1]["fallback"] is None


def test_a_canary_that_never_answers_costs_its_budget_and_then_nothing():
    silent = threading.Event()

    def never(_: bytes) -> None:
        silent.wait(30)

    with stand_in(never) as port, serving(Pair(policy("a")), canary_ms=20) as stable:
        send_to(stable, port, 1.0)
        answers = [stable.act(observation=OBSERVATION)[1] for _ in range(20)]
        (seen,) = tallies(stable, "canary")
        breaker = stable.stats()["route"]["breaker"]
        silent.set()
    assert {answer["fallback"] for answer in answers} == {"stable"}
    assert set(seen["errors"]) == {"canary-timeout"}
    assert seen["fallbacks"]["stable"]["breaker-open"] == 20 - seen["errors"]["canary-timeout"] > 0
    assert breaker != "Closed"


def test_a_canary_that_fails_is_tried_with_copies_until_it_answers_one():
    asked: list[bytes] = []
    well = threading.Event()

    def answer(request: bytes) -> bytes:
        arm = request.partition(b"ratchet-arm: ")[2].partition(b"\r\n")[0]
        asked.append(arm)
        row = {name: found and found[:1] for name, found in GOOD_BATCH.items()}
        return http_answer(GOOD if arm == b"canary" else row, 200 if well.is_set() else 500)

    with stand_in(answer) as port, serving(Pair(policy("a"))) as stable:
        send_to(stable, port, 1.0, digest="c" * 64)

        def ask() -> str | None:
            return stable.act(observation=OBSERVATION)[1]["fallback"]

        eventually(lambda: bool(ask()) and asked.count(b"shadow") >= 2)
        assert asked.count(b"canary") == 3
        well.set()
        eventually(lambda: ask() is None)
        (seen,), (copies,) = tallies(stable, "canary"), tallies(stable, "shadow")
    # No client waited for a try, and each is counted once.
    assert seen["errors"] == {"canary-error": 3}
    assert copies["errors"]["canary-error"] == asked.count(b"shadow") - 1
    assert copies["predictions"] == 1


def test_a_canary_out_of_reach_has_no_users_and_no_failures_before_there_is_a_way_to_it():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    with serving(Pair(policy("a"))) as stable:
        send_to(stable, port, 1.0, digest="c" * 64)
        asked = [stable.act(observation=OBSERVATION)[1]["fallback"] for _ in range(9)]
        (unreached,) = tallies(stable, "canary")
        with stand_in(lambda _: http_answer(GOOD), port):
            eventually(lambda: stable.act(observation=OBSERVATION)[1]["fallback"] is None)
            (reached,) = tallies(stable, "canary")
    assert asked == ["stable"] * 9
    assert (unreached["errors"], unreached["fallbacks"]) == ({}, {"stable": {"breaker-open": 9}})
    assert reached["errors"] == {}


def test_a_server_that_ends_leaves_nothing_behind_of_a_canary_out_of_reach():
    async def others() -> set[asyncio.Task[object]]:
        return asyncio.all_tasks() - {asyncio.current_task()}

    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    with serving(Pair(policy("a"))) as stable:
        send_to(stable, port, 1.0, digest="c" * 64)
        busy = stable.run(others())
        stable.run(stable.server.drain())
        assert busy
        eventually(lambda: not stable.run(others()))


def test_more_questions_than_the_canary_may_hold_are_answered_here():
    silent = threading.Event()

    def never(_: bytes) -> None:
        silent.wait(30)

    with stand_in(never) as port, serving(Pair(policy("a")), canary_ms=2000, canary_requests=2) as stable:
        send_to(stable, port, 1.0)
        with ThreadPoolExecutor(24) as pool:
            asking = [pool.submit(stable.act, observation=OBSERVATION) for _ in range(24)]
            found = [one.result()[0] for one in asking]
        (seen,) = tallies(stable, "canary")
        breaker = stable.stats()["route"]["breaker"]
        silent.set()
    assert found == [200] * 24
    # That this server asks no more at once is no failure of the canary.
    assert seen["errors"] == {"canary-timeout": 2}
    assert seen["requests"] == 2
    assert seen["fallbacks"]["stable"] == {"canary-timeout": 2, "canary-busy": 22}
    assert breaker == "Closed"


def test_a_connection_that_the_canary_closed_meanwhile_is_opened_again():
    answered: list[bytes] = []

    def once(data: bytes) -> bytes | None:
        answered.append(data)
        return http_answer(GOOD) if len(answered) % 2 else None

    with stand_in(once) as port, serving(Pair(policy("a"))) as stable:
        send_to(stable, port, 1.0)
        fallbacks = [stable.act(observation=OBSERVATION)[1]["fallback"] for _ in range(4)]
    assert fallbacks == [None] * 4


def test_a_wrong_question_is_refused_here_and_is_no_failure_of_the_canary():
    with stand_in(lambda _: None) as port, serving(Pair(policy("a"))) as stable:
        send_to(stable, port, 1.0)
        assert stable.act(observation=[1])[0] == 400
        assert tallies(stable, "canary") == []


def test_a_canary_never_sends_on_what_came_from_another_server():
    with two_servers() as (stable, canary):
        send_to(stable, canary.port, 1.0)
        send_to(canary, stable.port, 1.0)
        assert stable.act(observation=OBSERVATION)[1]["digest"][0] == "c"


def test_a_canary_whose_policy_fails_is_replaced_by_the_stable_one():
    broken = Broken(
        policy("c"), lambda decisions: decisions._replace(log_probability=decisions.log_probability * np.nan)
    )
    with serving(Pair(broken)) as canary, serving(Pair(policy("a"))) as stable:
        send_to(stable, canary.port, 1.0)
        answer = stable.act(observation=OBSERVATION)[1]
        (own,) = tallies(canary, "canary")
    assert (answer["digest"][0], answer["fallback"]) == ("a", "stable")
    assert own["nanAnswers"] == 1


def test_a_recurrent_canary_remembers_for_itself():
    with (
        serving(Pair(policy("c", RECURRENT))) as canary,
        serving(Pair(policy("a", RECURRENT))) as stable,
    ):
        send_to(stable, canary.port, 1.0)
        found = [
            stable.act(observation=OBSERVATION, episode="e", seed=1)[1]["logProbability"] for _ in range(3)
        ]
        alone = [
            stable.request(
                "POST",
                "/v1/act",
                {"observation": OBSERVATION, "episode": "f", "seed": 1},
                {"ratchet-hop": "1"},
            )[1]["logProbability"]
            for _ in range(3)
        ]
    assert found == pytest.approx(alone, abs=1e-5)
    assert len(set(found)) == 3


@pytest.mark.parametrize("canary", ["http://h:abc", "http://h:70000", "http://[h"])
def test_a_route_to_no_address_is_refused_and_the_one_before_goes_on(canary: str):
    with two_servers(admin_token="boss", canary_ms=5000) as (stable, other):
        send_to(stable, other.port, 1.0)
        order = {"generation": 2, "canary": canary, "weight": 1.0}
        status, answer = stable.request("PUT", "/v1/route", order, {"authorization": "Bearer boss"})
        assert (status, answer["error"]["code"]) == (400, "bad-field")
        assert stable.request("GET", "/v1/route")[1]["generation"] == 1
        assert stable.act(observation=OBSERVATION)[1]["digest"] == "c" * 64


def test_an_older_route_is_refused():
    with serving(Pair(policy()), admin_token="boss") as running:
        boss = {"authorization": "Bearer boss"}
        new = {"generation": 4, "canary": "http://127.0.0.1:1", "weight": 0.5}
        assert running.request("PUT", "/v1/route", new, boss)[0] == 200
        assert running.request("PUT", "/v1/route", new, boss)[0] == 200
        assert running.request("PUT", "/v1/route", {**new, "weight": 0.6}, boss)[0] == 409
        assert running.request("PUT", "/v1/route", {**new, "generation": 3}, boss)[0] == 409
        assert running.request("PUT", "/v1/route", {**new, "generation": 5, "weight": 2}, boss)[0] == 400
        assert running.request("PUT", "/v1/route", {**new, "generation": 5})[0] == 401
        assert running.request("GET", "/v1/route")[1]["generation"] == 4
        assert running.stats()["route"]["weight"] == 0.5


def test_a_canary_is_counted_as_asked_for_the_most_likely_action_where_it_was_or_by_default() -> None:
    for settings, asked, wanted in (({}, True, 3), ({}, None, 0), ({"deterministic": True}, None, 3)):
        with two_servers(**settings) as (stable, canary):
            send_to(stable, canary.port, 1.0)
            choice = {} if asked is None else {"deterministic": asked}
            stable.act(observations=[OBSERVATION] * 3, **choice)
            (seen,) = tallies(stable, "canary")
        assert (seen["actions"]["number"], seen["actions"]["deterministic"]) == (3, wanted)
