"""Both clients against a server that misbehaves on demand, over real sockets."""

import asyncio
import json
import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redisserver import free_port
from scriptedserver import DIGEST, GOOD, ScriptedServer, Step, decided, response

from ratchet.client import (
    Action,
    AsyncClient,
    BadAnswer,
    Client,
    Failed,
    Overloaded,
    PolicyError,
    Refused,
    Retries,
    TimedOut,
    Unreachable,
    base,
)
from ratchet.client.http import Reading
from ratchet.client.retrying import Budget

PATIENT = 20.0  # seconds that nothing here takes unless it is broken


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENT
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.001)


class Asks(Protocol):
    """Either client, called from ordinary code."""

    counts: Any

    def act(self, observation: Any, **arguments: Any) -> Action: ...
    def act_batch(self, observations: Any, **arguments: Any) -> list[Action]: ...
    def reward(self, reward: float, **arguments: Any) -> bool: ...
    def rewards(self, rewards: Any) -> bool: ...
    def close(self) -> None: ...


class Awaited:
    """An AsyncClient on a loop of its own."""

    def __init__(self, url: str, **settings: Any) -> None:
        self._runner = asyncio.Runner()
        self.client = AsyncClient(url, **settings)
        self.counts = self.client.counts

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        return lambda *values, **named: self._runner.run(method(*values, **named))

    def stop(self) -> None:
        self._runner.run(self.client.close())
        self._runner.close()


Make = Callable[..., Asks]


@pytest.fixture(params=["blocking", "asyncio"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Any] = []

    def build(url: str, **settings: Any) -> Asks:
        settings = {"timeout": PATIENT, **settings}
        if "fallback" not in settings:
            settings["strict"] = True
        client: Any = (Client if request.param == "blocking" else Awaited)(url, **settings)
        made.append(client)
        return client

    yield build
    for client in made:
        client.stop() if isinstance(client, Awaited) else client.close()


# What is asked and answered


def test_an_action_comes_with_all_that_is_known_of_it(make: Make):
    with ScriptedServer() as server:
        action = make(server.url).act([0.5, 1], episode="e")

    [request] = server.requests
    assert request.head.startswith("POST /v1/act HTTP/1.1\r\n")
    assert request.body == {"observation": [0.5, 1], "id": action.id, "episode": "e"}
    assert action == Action(1, -0.5, 2.5, DIGEST, "stable", None, request.body["id"])


def test_choices_reach_the_server_and_arrays_are_numbers(make: Make):
    with ScriptedServer() as server:
        client = make(server.url)
        client.act(
            np.float32([0.5, 1]), mask=np.array([True, False]), deterministic=False, temperature=0.5, seed=7
        )
        client.act([np.float32(0.5), np.int64(1)])

    full, short = (request.body for request in server.requests)
    del full["id"], short["id"]
    assert full == {
        "observation": [0.5, 1.0], "mask": [True, False],
        "deterministic": False, "temperature": 0.5, "seed": 7,
    }  # fmt: skip
    assert short == {"observation": [0.5, 1]}


def test_a_batch_is_one_request_with_an_id_each(make: Make):
    with ScriptedServer() as server:
        actions = make(server.url).act_batch(np.zeros((3, 2)), episodes=["a", "b", "c"])

    [request] = server.requests
    assert request.body["ids"] == [action.id for action in actions]
    assert len(set(request.body["ids"])) == 3
    assert request.body["episodes"] == ["a", "b", "c"]
    assert [(action.action, action.value) for action in actions] == [(0, None), (1, None), (2, None)]


def test_rewards_and_returns_are_sent(make: Make):
    with ScriptedServer() as server:
        client = make(server.url)
        assert client.reward(1.5, id="a")
        assert client.reward(np.float32(200), episode="e", length=200)
        assert client.rewards([{"id": "a", "reward": 1}, {"id": "b", "reward": 2}])

    assert [request.body for request in server.requests] == [
        {"id": "a", "reward": 1.5},
        {"episode": "e", "return": 200.0, "length": 200},
        {"rewards": [{"id": "a", "reward": 1}, {"id": "b", "reward": 2}]},
    ]
    assert {request.head.split()[1] for request in server.requests} == {"/v1/reward"}


def test_a_reward_is_for_one_thing(make: Make):
    with ScriptedServer() as server:
        client = make(server.url, fallback=0)
        for arguments in ({}, {"id": "a", "episode": "e"}):
            with pytest.raises(TypeError, match="for a decision"):
                client.reward(1.0, **arguments)


def test_the_token_and_the_path_before_are_sent(make: Make):
    with ScriptedServer() as server:
        make(server.url + "/team/policy/", token="secret").act([0])

    head = server.requests[0].head
    assert head.startswith("POST /team/policy/v1/act HTTP/1.1\r\n")
    assert "\r\nAuthorization: Bearer secret\r\n" in head


@pytest.mark.parametrize(
    ("url", "settings", "words"),
    [
        ("localhost:8080", {}, "is no URL of a policy server"),
        ("ftp://host", {}, "is no URL of a policy server"),
        ("http://host/?a=b", {}, "is no URL of a policy server"),
        ("http://user:pass@host", {}, "take a token"),
        ("http://host", {"token": "a\r\nb"}, "no header can"),
        ("http://host", {"strict": False}, "say what to do when no answer comes"),
        ("http://host", {"fallback": 0, "strict": True}, "say what to do when no answer comes"),
    ],
)
def test_settings_that_cannot_work_are_refused(url: str, settings: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        Client(url, **({"strict": True} | settings))


# Connections


def test_a_connection_is_kept_for_the_next_request(make: Make):
    with ScriptedServer() as server:
        client = make(server.url)
        for _ in range(5):
            client.act([0])
        assert server.connections == 1


def test_an_idle_connection_that_the_server_closed_costs_nothing(make: Make):
    """Not even a retry: it says nothing of the server."""
    with ScriptedServer() as server:
        client = make(server.url, retries=Retries(attempts=1))
        client.act([0])
        server.hang_up()

        assert client.act([0]).fallback is None
        assert client.counts["retries"] == 0
        assert server.connections == 2


@pytest.mark.parametrize("header", ["connection: close", "Connection: Close"])
def test_a_connection_that_the_server_gives_up_is_not_used_again(make: Make, header: str):
    bye = Step(lambda body: response(200, decided(body), header), close=True)
    with ScriptedServer(bye, bye) as server:
        client = make(server.url)
        client.act([0])
        client.act([0])
        assert [request.connection for request in server.requests] == [0, 1]


def test_an_episode_returns_to_its_connection():
    """So one server sees the whole of it, through any balancer of connections."""
    with ScriptedServer() as server, Client(server.url, strict=True, timeout=PATIENT) as client:
        two_connections(server, client)
        for name in "abbabaab":
            client.act([0], episode=name)

    used = {name: {r.connection for r in server.requests if r.body["episode"] == name} for name in "ab"}
    assert [len(connections) for connections in used.values()] == [1, 1]
    assert used["a"] != used["b"]


def two_connections(server: ScriptedServer, client: Client) -> dict[str, int]:
    """Uses two connections at once, for the episodes a and b. Which of them has which."""
    gate = threading.Event()
    server.script = [Step(GOOD.answer, gate=gate), Step(GOOD.answer, gate=gate)]
    with ThreadPoolExecutor(2) as threads:
        first = [threads.submit(client.act, [0], episode=name) for name in "ab"]
        until(lambda: len(server.requests) == 2)
        gate.set()
        for one in first:
            one.result()
    return {request.body["episode"]: request.connection for request in server.requests}


def test_a_batch_returns_to_the_connection_of_its_episodes():
    with ScriptedServer() as server, Client(server.url, strict=True, timeout=PATIENT) as client:
        of = two_connections(server, client)
        client.act_batch([[0], [0]], episodes=["new", "a"])
        client.act([0], episode="b")
        client.act([0], episode="new")
        client.act_batch([[0], [0]], episodes=["newer", "b"])
        client.act([0], episode="new")
        client.act_batch([[0]], episodes=["newer"])
    found = [request.connection for request in server.requests[2:]]
    assert found == [of[name] for name in ("a", "b", "a", "b", "a", "b")]


def test_of_many_episodes_only_the_one_used_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "PINS", 3)
    with ScriptedServer() as server, Client(server.url, strict=True, timeout=PATIENT) as client:
        of = two_connections(server, client)
        for name in "cde":
            # A new episode takes the connection that was used last, which is not the one of a.
            for each in ("b", name, "a"):
                client.act([0], episode=each)
        used = {request.connection for request in server.requests if request.body["episode"] == "a"}
    assert used == {of["a"]}


def test_threads_share_a_client():
    with (
        ScriptedServer() as server,
        Client(server.url, strict=True, timeout=PATIENT) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        actions = list(threads.map(lambda i: client.act([i], episode=f"e{i % 3}"), range(200)))

    assert {action.id for action in actions} == {request.body["id"] for request in server.requests}
    assert len({action.id for action in actions}) == 200
    assert server.connections <= 8


def test_many_callers_wait_for_a_connection():
    async def ask(url: str) -> list[Action]:
        async with AsyncClient(url, strict=True, timeout=PATIENT, connections=4) as client:
            return await asyncio.gather(*(client.act([i]) for i in range(100)))

    with ScriptedServer() as server:
        assert len(asyncio.run(ask(server.url))) == 100
        assert server.connections <= 4


def test_a_caller_that_goes_away_leaves_no_answer_to_the_next():
    held = Step(GOOD.answer, gate=threading.Event())

    async def ask(server: ScriptedServer) -> Action:
        async with AsyncClient(server.url, strict=True, timeout=PATIENT) as client:
            gone = asyncio.create_task(client.act([0]))
            await asyncio.to_thread(until, lambda: len(server.requests) == 1)
            gone.cancel()
            held.gate.set()
            return await client.act([1])

    with ScriptedServer(held) as server:
        action = asyncio.run(ask(server))
        assert action.id == server.requests[1].body["id"]


# Trouble


def unavailable(seconds: str = "") -> Step:
    error = {"error": {"code": "overloaded", "message": "the queue is full"}}
    return Step(response(503, error, *([f"retry-after: {seconds}"] if seconds else [])))


def said(body: Any) -> Step:
    return Step(response(200, body))


def changed(**changes: Any) -> Step:
    return Step(lambda body: response(200, decided(body, **changes)))


def huge(body: Any) -> bytes:
    return json.dumps(decided(body)).replace("-0.5", "-1e999").encode()


TROUBLES: dict[str, tuple[Step, type[PolicyError]]] = {
    "closed": (Step(close=True), Unreachable),
    "cut": (Step(lambda body: response(200, decided(body))[:-10], close=True), Unreachable),
    "cut head": (Step(b"HTTP/1.1 200 O", close=True), Unreachable),
    "busy": (unavailable(), Overloaded),
    "too many": (Step(response(429, b"slow down")), Overloaded),
    "gateway": (Step(response(502, b"<html>bad gateway</html>")), Failed),
    "crash": (Step(response(500, {"error": {"code": "internal", "message": "see the log"}})), Failed),
    "not http": (Step(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), BadAnswer),
    "not json": (said(b"<html>ok</html>"), BadAnswer),
    "not utf-8": (said(b"\xff\xfe"), BadAnswer),
    "a list": (said([1, 2]), BadAnswer),
    "deep": (said(b"[" * 100_000), BadAnswer),
    "empty": (said({}), BadAnswer),
    "NaN": (said(b'{"action": NaN}'), BadAnswer),
    "NaN inside": (Step(lambda body: response(200, decided(body, action=[1.0, math.nan]))), BadAnswer),
    "huge number": (Step(lambda body: response(200, huge(body))), BadAnswer),
    "huge integer": (changed(action=10**400), BadAnswer),
    "huge probability": (changed(logProbability=-(10**400)), BadAnswer),
    "huge value": (changed(value=10**400), BadAnswer),
    "of another": (changed(id="another"), BadAnswer),
    "no action": (changed(action=None), BadAnswer),
    "text": (changed(action="left"), BadAnswer),
    "no number": (changed(logProbability="high"), BadAnswer),
    "no word": (changed(digest=7), BadAnswer),
    "bad length": (Step(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"), BadAnswer),
    "endless head": (Step(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000), BadAnswer),
    "bad chunk": (Step(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n"), BadAnswer),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_has_its_own_error(make: Make, name: str):
    step, kind = TROUBLES[name]
    with ScriptedServer(step) as server:
        client = make(server.url, retries=Retries(attempts=1))
        with pytest.raises(PolicyError) as caught:
            client.act([0])
        assert type(caught.value) is kind

        assert client.act([0]).fallback is None, "the next request has to work"


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_is_tried_again_under_the_same_id(make: Make, name: str):
    step, _ = TROUBLES[name]
    with ScriptedServer(step, step) as server:
        client = make(server.url)
        action = client.act([0])

        assert action.fallback is None
        assert [request.body["id"] for request in server.requests] == [action.id] * 3
        assert client.counts["retries"] == 2


def test_trouble_ends_in_the_safe_action(make: Make, caplog: pytest.LogCaptureFixture):
    with ScriptedServer(*[unavailable()] * 6) as server:
        client = make(server.url, fallback=3)
        with caplog.at_level(logging.WARNING, "ratchet.client"):
            first, second = client.act([0]), client.act([0])

    assert (first.action, first.fallback, first.digest) == (3, "client", "")
    assert math.isnan(first.log_probability)
    assert second.action == 3
    assert client.counts["fallbacks"] == client.counts["Overloaded"] == 2
    assert len([record for record in caplog.records if "the queue is full" in record.getMessage()]) == 1


def test_a_batch_ends_in_safe_actions(make: Make):
    with ScriptedServer(*[unavailable()] * 3) as server:
        client = make(server.url, fallback=lambda observation, mask: int(observation[0]))
        actions = client.act_batch(np.array([[5], [6]]))
    assert [(action.action, action.fallback) for action in actions] == [(5, "client"), (6, "client")]


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [(None, 0), ([True, True], 0), ([False, False, True], 2), (np.array([False, True]), 1), ([False] * 2, 0)],
)
def test_a_safe_action_gives_way_to_the_mask(make: Make, mask: Any, wanted: int):
    client = make(f"http://127.0.0.1:{free_port()}", fallback=0)
    assert client.act([0], mask=mask).action == wanted


def test_a_request_at_fault_is_not_tried_again(make: Make):
    error = {"error": {"code": "wrong-shape", "message": "observation must be numbers of shape [4]"}}
    with ScriptedServer(Step(response(400, error))) as server:
        client = make(server.url)
        with pytest.raises(Refused, match=r"shape \[4\]") as caught:
            client.act([0])
        assert (caught.value.status, caught.value.code) == (400, "wrong-shape")
        assert len(server.requests) == 1


@pytest.mark.parametrize("observation", [[math.nan], [math.inf], ["a", object()], {1, 2}])
def test_what_json_has_not_is_not_sent(make: Make, observation: Any):
    with ScriptedServer() as server:
        with pytest.raises(Refused, match="cannot be sent"):
            make(server.url).act(observation)
        assert make(server.url, fallback=9).act(observation).action == 9
        assert server.requests == []


def test_nobody_there(make: Make):
    with pytest.raises(Unreachable, match="no connection to 127"):
        make(f"http://127.0.0.1:{free_port()}").act([0])


def test_a_slow_server_is_not_waited_for(make: Make):
    never = threading.Event()
    with ScriptedServer(Step(GOOD.answer, gate=never)) as server:
        with pytest.raises(TimedOut):
            make(server.url, timeout=0.05).act([0])
        assert len(server.requests) == 1
        never.set()


def test_an_answer_that_trickles_is_not_waited_for(make: Make):
    """Each byte comes in time, the answer never does."""
    trickle = Step(GOOD.answer, pieces=2, pace=0.02)
    with ScriptedServer(trickle) as server, pytest.raises(TimedOut):
        make(server.url, timeout=0.1).act([0])


def test_a_connection_whose_answer_is_not_waited_for_is_closed(make: Make):
    late = Step(GOOD.answer, gate=threading.Event())
    with ScriptedServer(late) as server:
        client = make(server.url, fallback=0, timeout=0.05)
        client.act([0])
        late.gate.set()
        until(lambda: server.ended == [0])


def test_an_answer_after_the_time_is_not_taken_for_the_next(make: Make):
    late = Step(GOOD.answer, gate=threading.Event())
    with ScriptedServer(late) as server:
        client = make(server.url, fallback=0, timeout=0.05)
        assert client.act([0]).fallback == "client"
        late.gate.set()
        server.script.clear()
        for _ in range(3):
            action = client.act([0])
            assert action.fallback == "client" or action.id == server.requests[-1].body["id"]


def test_a_server_that_asks_for_more_time_than_there_is_is_left_alone(make: Make):
    with ScriptedServer(unavailable("30")) as server:
        with pytest.raises(Overloaded, match="queue is full") as caught:
            make(server.url).act([0])
        assert caught.value.retry_after == 30
        assert len(server.requests) == 1


def test_a_lost_reward_is_said_and_not_raised(make: Make):
    with ScriptedServer(*[unavailable()] * 3) as server:
        client = make(server.url, fallback=0)
        assert not client.reward(1.0, id="a")
        assert client.counts["lost rewards"] == 1
        assert client.reward(1.0, id="a")


# Retrying, without sockets


def test_retries_stay_within_their_share():
    budget = Budget(Retries(attempts=10, share=0.1, burst=5))
    granted = 0
    for _ in range(1_000):
        budget.request()
        granted += budget.pause(Unreachable(), 1, PATIENT) is not None
    assert 95 <= granted <= 105


def test_pauses_double_and_are_drawn():
    budget = Budget(Retries(attempts=5, first=0.01))
    longest = [budget.pause(Failed(), attempt, PATIENT, lambda _, most: most) for attempt in (1, 2, 3, 4, 5)]
    assert longest == [0.01, 0.02, 0.04, 0.08, None]
    assert budget.pause(Failed(), 1, PATIENT, lambda least, _: least) == 0.0


def test_the_server_says_how_long_to_wait_at_least():
    budget = Budget(Retries())
    assert budget.pause(Overloaded("", 2.0), 1, PATIENT, lambda least, _: least) == 2.0
    assert budget.pause(Overloaded("", 2.0), 1, PATIENT, lambda _, most: most) == pytest.approx(2.2)
    assert budget.pause(Overloaded("", 2.0), 1, 1.5) is None
    assert budget.pause(Overloaded("", 0.0), 1, PATIENT, lambda _, most: most) == pytest.approx(0.005)


@pytest.mark.parametrize("error", [Refused("no", 400), TimedOut()])
def test_some_errors_do_not_pass(error: PolicyError):
    assert Budget(Retries()).pause(error, 1, PATIENT) is None


# HTTP, without sockets

CONTENT = b'{"a": "' + b"b" * 30 + b'"}'
FORMS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(CONTENT), CONTENT),
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\n"
    b"HTTP/1.1 200 OK\r\ncontent-length:%d\r\n\r\n%b" % (len(CONTENT), CONTENT),
    "chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"1\r\n{\r\nA;name=value\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n"
    % (CONTENT[1:11], len(CONTENT) - 11, CONTENT[11:]),
    "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b"%x\r\n%b\r\n0\r\nx: y\r\n\r\n" % (len(CONTENT), CONTENT),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@given(cuts=st.lists(st.integers(1, 200)))
def test_an_answer_is_the_same_however_it_is_cut(form: str, cuts: list[int]):
    content = FORMS[form]
    marks = [0, *sorted({cut for cut in cuts if cut < len(content)}), len(content)]
    reading = Reading()
    answers = [reading.feed(content[i:j]) for i, j in pairwise(marks)]

    assert answers[:-1] == [None] * (len(answers) - 1)
    assert answers[-1] is not None
    assert (answers[-1].status, answers[-1].body) == (200, CONTENT)
    assert answers[-1].reusable == (form != "trailers")


def test_an_answer_may_end_with_its_connection():
    reading = Reading()
    assert reading.feed(b"HTTP/1.0 200 OK\r\n\r\nall") is None
    assert reading.feed(b" of it") is None
    answer = reading.feed(b"")
    assert answer is not None
    assert (answer.body, answer.reusable) == (b"all of it", False)


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (b"HTTP/1.1 204 None", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0", True),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0", False),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0", True),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0", False),
    ],
)
def test_whether_a_connection_takes_another_request(head: bytes, reusable: bool):
    answer = Reading().feed(head + b"\r\n\r\n")
    assert answer is not None
    assert answer.reusable is reusable
    after = Reading().feed(head + b"\r\n\r\nmore")
    assert after is not None
    assert after.reusable is False


@given(st.binary(max_size=200), st.binary(max_size=50))
def test_rubbish_is_an_error_of_the_family(first: bytes, second: bytes):
    reading = Reading()
    try:
        for piece in (first, second, b""):
            if reading.feed(piece) is not None:
                return
    except PolicyError:
        return
    raise AssertionError("neither an answer nor an error")


def test_the_client_needs_nothing_but_python():
    """It is imported into programs that control things, whose packages are their own."""
    script = (
        "import sys; import ratchet.client; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    found = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    ours = {"__main__", "ratchet"}
    others = {name for name in found.stdout.split() if name not in sys.stdlib_module_names | ours}
    assert {name for name in others if not name.startswith(("_", "sitecustomize"))} == set()


def test_ids_are_json_and_short():
    with ScriptedServer() as server, Client(server.url, strict=True) as client:
        id_ = client.act([0]).id
    assert json.loads(json.dumps(id_)) == id_
    assert len(id_) < 64
