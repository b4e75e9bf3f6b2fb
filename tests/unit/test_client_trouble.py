"""Both clients against a server that misbehaves: an error for each trouble, a safe action, in time."""

import json
import logging
import math
import threading
from typing import Any

import numpy as np
import pytest
from clients import MakeClient, until
from redisserver import free_port
from scriptedserver import GOOD, ScriptedServer, Step, decided, response

from ratchet.client import BadAnswer, Failed, Overloaded, PolicyError, Refused, Retries, TimedOut, Unreachable


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
    "no step": (changed(t="first"), BadAnswer),
    "bad length": (Step(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"), BadAnswer),
    "endless head": (Step(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000), BadAnswer),
    "bad chunk": (Step(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n"), BadAnswer),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_has_its_own_error(make_client: MakeClient, name: str):
    step, kind = TROUBLES[name]
    with ScriptedServer(step) as server:
        client = make_client(server.url, retries=Retries(attempts=1))
        with pytest.raises(PolicyError) as caught:
            client.act([0])
        assert type(caught.value) is kind

        assert client.act([0]).fallback is None, "the next request has to work"


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_is_tried_again_under_the_same_id(make_client: MakeClient, name: str):
    step, _ = TROUBLES[name]
    with ScriptedServer(step, step) as server:
        client = make_client(server.url)
        action = client.act([0])

        assert action.fallback is None
        assert [request.body["id"] for request in server.requests] == [action.id] * 3
        assert client.counts["retries"] == 2


def test_trouble_ends_in_the_safe_action(make_client: MakeClient, caplog: pytest.LogCaptureFixture):
    with ScriptedServer(*[unavailable()] * 6) as server:
        client = make_client(server.url, fallback=3)
        with caplog.at_level(logging.WARNING, "ratchet.client"):
            first, second = client.act([0]), client.act([0])

    assert (first.action, first.fallback, first.digest) == (3, "client", "")
    assert math.isnan(first.log_probability)
    assert second.action == 3
    assert client.counts["fallbacks"] == client.counts["Overloaded"] == 2
    assert len([record for record in caplog.records if "the queue is full" in record.getMessage()]) == 1


def test_a_batch_ends_in_safe_actions(make_client: MakeClient):
    with ScriptedServer(*[unavailable()] * 3) as server:
        client = make_client(server.url, fallback=lambda observation, mask: int(observation[0]))
        actions = client.act_batch(np.array([[5], [6]]))
    assert [(action.action, action.fallback) for action in actions] == [(5, "client"), (6, "client")]


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [(None, 0), ([True, True], 0), ([False, False, True], 2), (np.array([False, True]), 1), ([False] * 2, 0)],
)
def test_a_safe_action_gives_way_to_the_mask(make_client: MakeClient, mask: Any, wanted: int):
    client = make_client(f"http://127.0.0.1:{free_port()}", fallback=0)
    assert client.act([0], mask=mask).action == wanted


def test_a_request_at_fault_is_not_tried_again(make_client: MakeClient):
    error = {"error": {"code": "wrong-shape", "message": "observation must be numbers of shape [4]"}}
    with ScriptedServer(Step(response(400, error))) as server:
        client = make_client(server.url)
        with pytest.raises(Refused, match=r"shape \[4\]") as caught:
            client.act([0])
        assert (caught.value.status, caught.value.code) == (400, "wrong-shape")
        assert len(server.requests) == 1


@pytest.mark.parametrize("observation", [[math.nan], [math.inf], ["a", object()], {1, 2}])
def test_what_json_has_not_is_not_sent(make_client: MakeClient, observation: Any):
    with ScriptedServer() as server:
        with pytest.raises(Refused, match="cannot be sent"):
            make_client(server.url).act(observation)
        assert make_client(server.url, fallback=9).act(observation).action == 9
        assert server.requests == []


def test_nobody_there(make_client: MakeClient):
    with pytest.raises(Unreachable, match="no connection to 127"):
        make_client(f"http://127.0.0.1:{free_port()}").act([0])


def test_a_slow_server_is_not_waited_for(make_client: MakeClient):
    never = threading.Event()
    with ScriptedServer(Step(GOOD.answer, gate=never)) as server:
        with pytest.raises(TimedOut):
            make_client(server.url, timeout=0.05).act([0])
        assert len(server.requests) == 1
        never.set()


def test_an_answer_that_trickles_is_not_waited_for(make_client: MakeClient):
    """Each byte comes in time, the answer never does."""
    trickle = Step(GOOD.answer, pieces=2, pace=0.02)
    with ScriptedServer(trickle) as server, pytest.raises(TimedOut):
        make_client(server.url, timeout=0.1).act([0])


def test_a_connection_whose_answer_is_not_waited_for_is_closed(make_client: MakeClient):
    late = Step(GOOD.answer, gate=threading.Event())
    with ScriptedServer(late) as server:
        client = make_client(server.url, fallback=0, timeout=0.05)
        client.act([0])
        late.gate.set()
        until(lambda: server.ended == [0])


def test_an_answer_after_the_time_is_not_taken_for_the_next(make_client: MakeClient):
    late = Step(GOOD.answer, gate=threading.Event())
    with ScriptedServer(late) as server:
        client = make_client(server.url, fallback=0, timeout=0.05)
        assert client.act([0]).fallback == "client"
        late.gate.set()
        server.script.clear()
        for _ in range(3):
            action = client.act([0])
            assert action.fallback == "client" or action.id == server.requests[-1].body["id"]


def test_a_server_that_asks_for_more_time_than_there_is_is_left_alone(make_client: MakeClient):
    with ScriptedServer(unavailable("30")) as server:
        with pytest.raises(Overloaded, match="queue is full") as caught:
            make_client(server.url).act([0])
        assert caught.value.retry_after == 30
        assert len(server.requests) == 1


def test_a_lost_reward_is_said_and_not_raised(make_client: MakeClient):
    with ScriptedServer(*[unavailable()] * 3) as server:
        client = make_client(server.url, fallback=0)
        assert not client.reward(1.0, id="a")
        assert client.counts["lost rewards"] == 1
        assert client.reward(1.0, id="a")
