"""Clients whose servers sleep are held at the operator's door: real sockets, and the real policy server."""

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
import uvloop
from policyserver import Pair, Running, policy, serving
from ratchet_operator import waker as waking
from ratchet_operator.waker import Waker, last

from ratchet.client import Client, Episode, Overloaded, Unreachable
from ratchet.client.retrying import Retries

T = TypeVar("T")
HOST, AT = "127.0.0.1", ("team", "cartpole")
OBSERVATION = [0.1, -0.2, 0.3, 0.4]
ONCE = Retries(attempts=1)
LARGE = bytes(range(256)) * (1 << 14)  # bytes of a request: more than any socket takes that nobody reads from


@dataclass
class Door:
    """A waker in a loop of its own, as the operator has it."""

    loop: asyncio.AbstractEventLoop
    waker: Waker
    asked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        async def inside() -> T:
            return function(*arguments)

        return self.run(inside())

    @property
    def port(self) -> int:
        port = self.call(self.waker.door, *AT).port
        assert port is not None
        return port

    @property
    def held(self) -> int:
        return self.call(self.waker.door, *AT).held

    def client(self, **settings: Any) -> Client:
        return Client(
            f"http://{HOST}:{self.port}", strict=True, **{"timeout": 20, "retries": ONCE, **settings}
        )

    def serve(self, *ports: int) -> None:
        self.call(self.waker.serve, *AT, [(HOST, port) for port in ports])


def free_ports(number: int) -> range:
    """Ports in a row that nobody listens at."""
    for first in range(21_000, 29_000, number):
        with bound_to(range(first, first + number)) as are_free:
            if are_free:
                return range(first, first + number)
    raise AssertionError("no free ports")


@contextmanager
def bound_to(ports: range) -> Iterator[bool]:
    """Whether all of these ports can be bound."""
    sockets = [socket.socket() for _ in ports]
    try:
        for one, port in zip(sockets, ports, strict=True):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((HOST, port))
        yield True
    except OSError:
        yield False
    finally:
        for one in sockets:
            one.close()


@contextmanager
def leading(ports: range) -> Iterator[Door]:
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asked: list[tuple[str, str]] = []
    door = Door(loop, Waker(HOST, ports, lambda *at: asked.append(at)), asked)
    try:
        door.run(door.waker.open(*AT))
        yield door
        door.run(door.waker.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def door() -> Iterator[Door]:
    with leading(free_ports(4)) as door:
        yield door


@pytest.fixture
def running() -> Iterator[Running]:
    with serving(Pair(policy())) as running:
        yield running


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(200) as pool:
        yield pool


def until(probe: Callable[[], object]) -> None:
    end = threading.Event()
    for _ in range(2_000):
        if probe():
            return
        end.wait(0.01)
    raise AssertionError("never")


def test_a_request_is_held_until_a_server_is_there(door: Door, running: Running, pool: ThreadPoolExecutor):
    with door.client() as client:
        asked = pool.submit(client.act, OBSERVATION)
        until(lambda: door.held == 1)
        assert door.asked == [AT]
        assert not asked.done()

        door.serve(running.port)

        assert asked.result().digest == "a" * 64
    assert door.held == 0
    assert running.stats()["arms"][0]["requests"] == 1


def test_a_connection_ends_with_its_first_answer(door: Door, running: Running):
    door.serve(running.port)
    connection = http.client.HTTPConnection(HOST, door.port, timeout=20)
    connection.request(
        "POST", "/v1/act", json.dumps({"observation": OBSERVATION}), {"connection": "keep-alive"}
    )
    answer = connection.getresponse()

    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert json.loads(answer.read())["digest"] == "a" * 64
    assert answer.isclosed()


def test_many_at_once_are_all_answered_a_few_at_a_time(
    door: Door, running: Running, pool: ThreadPoolExecutor
):
    number = 3 * waking.AT_ONCE
    with door.client(connections=number) as client:
        asked = [pool.submit(client.act, OBSERVATION) for _ in range(number)]
        until(lambda: door.held == number)

        door.serve(running.port)

        assert {one.result().digest for one in asked} == {"a" * 64}
    stats = running.stats()
    assert (stats["arms"][0]["requests"], stats["shed"]) == (number, 0)


def test_an_episode_over_a_websocket_waits_too_and_goes_on_through_the_door(
    door: Door, running: Running, pool: ThreadPoolExecutor
):
    with door.client() as client, closing(Episode(client)) as episode:
        asked = pool.submit(episode.act, OBSERVATION)
        until(lambda: door.held == 1)
        door.serve(running.port)
        asked.result()

        for _ in range(3):
            assert episode.act(OBSERVATION).digest == "a" * 64
        assert running.stats()["websockets"] == 1
    until(lambda: running.stats()["websockets"] == 0)


def test_open_episodes_leave_room_for_requests(
    door: Door, running: Running, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(waking, "AT_ONCE", 1)
    door.run(door.waker.open("team", "other"))
    at = "team", "other"
    door.call(door.waker.serve, *at, [(HOST, running.port)])
    port = door.call(door.waker.door, *at).port
    with (
        Client(f"http://{HOST}:{port}", strict=True, timeout=20) as client,
        closing(Episode(client)) as episode,
    ):
        episode.act(OBSERVATION)

        assert client.act(OBSERVATION).digest == "a" * 64


def test_a_client_that_gives_up_frees_its_place_and_has_woken_them(door: Door, running: Running):
    with door.client(timeout=0.2) as client, pytest.raises(Exception, match="no answer in time"):
        client.act(OBSERVATION)

    until(lambda: door.held == 0)
    assert door.call(door.waker.door, *AT).is_asked
    door.serve(running.port)
    with door.client() as client:
        client.act(OBSERVATION)
    assert running.stats()["arms"][0]["requests"] == 1


def test_who_only_looks_whether_the_port_is_open_wakes_nobody(door: Door):
    with socket.create_connection((HOST, door.port)) as connection:
        connection.sendall(b"POST /v1/act HTTP/1.1\r\n")
    with door.client(timeout=0.2) as client, pytest.raises(Exception, match="no answer in time"):
        client.act(OBSERVATION)
    assert len(door.asked) == 1


def test_a_server_that_takes_no_connection_is_passed_over(door: Door, running: Running):
    with socket.socket() as deaf:
        deaf.bind((HOST, 0))
        door.serve(deaf.getsockname()[1], running.port)
        with door.client() as client:
            for _ in range(4):
                assert client.act(OBSERVATION).digest == "a" * 64


def test_without_a_server_the_client_is_told_when_to_come_again(door: Door, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(waking, "HOLD_SECONDS", 0.1)
    with door.client() as client, pytest.raises(Overloaded, match="no server has started") as caught:
        client.act(OBSERVATION)
    assert caught.value.retry_after == 5
    assert door.held == 0


def test_too_many_are_turned_away_at_once(
    door: Door, running: Running, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(waking, "MOST_HELD", 2)
    with door.client() as client:
        held = [pool.submit(client.act, OBSERVATION) for _ in range(2)]
        until(lambda: door.held == 2)
        with pytest.raises(Overloaded, match="too many") as caught:
            client.act(OBSERVATION)
        assert caught.value.retry_after == 1
        door.serve(running.port)
        assert all(one.result() for one in held)


def ask(door: Door, body: bytes) -> tuple[int, str | None, bytes]:
    """Status, Retry-After and body of the answer to a request."""
    with closing(http.client.HTTPConnection(HOST, door.port, timeout=20)) as connection:
        connection.request("POST", "/v1/act", body)
        answer = connection.getresponse()
        return answer.status, answer.headers["retry-after"], answer.read()


def test_connections_that_have_not_asked_yet_count_too(
    door: Door, running: Running, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(waking, "MOST_HELD", 2)
    door.serve(running.port)
    with (
        socket.create_connection((HOST, door.port)) as one,
        socket.create_connection((HOST, door.port)) as other,
    ):
        one.sendall(b"POST /v1/act HTTP/1.1\r\n")
        status, wait, said = ask(door, LARGE)
        assert (status, wait, json.loads(said)["error"]["code"]) == (503, "1", "overloaded")
        other.close()

        def is_room() -> bool:
            with door.client() as client, suppress(Overloaded):
                return bool(client.act(OBSERVATION))
            return False

        until(is_room)


def test_open_episodes_leave_room_for_those_who_wait(
    door: Door, running: Running, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(waking, "MOST_HELD", 1)
    monkeypatch.setattr(waking, "MOST_OPEN", 2)
    monkeypatch.setattr(waking, "HEAD_SECONDS", 60.0)
    door.serve(running.port)
    with door.client() as client, closing(Episode(client)) as episode:
        episode.act(OBSERVATION)
        assert client.act(OBSERVATION).digest == "a" * 64
        until(lambda: len(door.waker._open) == 1)  # pyright: ignore[reportPrivateUsage]
        with closing(Episode(client)) as another:
            another.act(OBSERVATION)
            with socket.create_connection((HOST, door.port), timeout=20) as last_of_all:
                assert last_of_all.recv(1) == b""


def test_of_a_large_request_that_waits_only_its_beginning_is_held(door: Door, pool: ThreadPoolExecutor):
    asked = pool.submit(ask, door, LARGE)
    until(lambda: door.held == 1)
    (client,) = door.waker._waiting  # pyright: ignore[reportPrivateUsage]
    assert client.transport is not None

    until(lambda: not client.transport.is_reading())

    held = len(client._said)  # pyright: ignore[reportPrivateUsage]
    assert waking.LARGEST_HELD <= held <= waking.LARGEST_HELD + len(b"Connection: close\r\n")
    door.run(door.waker.stop())
    assert asked.result()[:2] == (503, "1")


def test_who_sends_a_large_request_is_told_that_no_server_came(door: Door, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(waking, "HOLD_SECONDS", 0.1)
    status, wait, said = ask(door, LARGE)
    assert (status, wait, json.loads(said)["error"]["code"]) == (503, "5", "asleep")


def test_an_operator_that_ends_sends_the_clients_to_the_next_one(running: Running, pool: ThreadPoolExecutor):
    ports = free_ports(4)
    with leading(ports) as first, first.client() as client:
        asked = pool.submit(client.act, OBSERVATION)
        until(lambda: first.held == 1)
        port = first.port
        first.run(first.waker.stop())
        with pytest.raises(Overloaded) as caught:
            asked.result()
        assert caught.value.retry_after == 1
        with pytest.raises(Unreachable):
            client.act(OBSERVATION)

        with leading(ports) as second:
            assert second.port == port
            second.serve(running.port)
            assert client.act(OBSERVATION).digest == "a" * 64


def test_each_has_a_port_of_its_own_for_as_long_as_there_are_any():
    with leading(free_ports(2)) as door:
        for name in ("b", "c"):
            door.run(door.waker.open("team", name))
        ports = [door.call(door.waker.door, "team", name).port for name in ("cartpole", "b", "c")]
        assert len({*ports} - {None}) == 2
        assert ports[2] is None

        door.call(door.waker.close, "team", "b")
        door.run(door.waker.open("team", "c"))

        assert door.call(door.waker.door, "team", "c").port == ports[1]


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"hello\r\n\r\n", 400, "bad-request"),
        (b"GET / HTTP/2.0\r\n\r\n", 400, "bad-request"),
        (b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 70_000, 431, "head-too-large"),
    ],
)
def test_what_is_no_request_is_refused_and_wakes_nobody(door: Door, sent: bytes, status: int, code: str):
    with socket.create_connection((HOST, door.port), timeout=20) as connection:
        connection.sendall(sent)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == status
        assert json.loads(answer.read())["error"]["code"] == code
    assert door.asked == []


def test_a_large_request_arrives_whole(door: Door, pool: ThreadPoolExecutor):
    assert len(LARGE) > 16 * waking.LARGEST_HELD
    with socket.create_server((HOST, 0)) as listener:
        asked = pool.submit(ask, door, LARGE)
        until(lambda: door.held == 1)
        door.serve(listener.getsockname()[1])
        server, _ = listener.accept()
        with server, server.makefile("rb") as said:
            lines = list(iter(said.readline, b"\r\n"))
            assert b"Connection: close\r\n" in lines
            assert said.read(len(LARGE)) == LARGE
            server.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(LARGE) + LARGE)
        assert asked.result() == (200, None, LARGE)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"),
        (
            b"POST /v1/act HTTP/1.1\r\nHost: x\r\nconnection: keep-alive\r\nA: b\r\n\r\n",
            b"POST /v1/act HTTP/1.1\r\nHost: x\r\nA: b\r\nConnection: close\r\n\r\n",
        ),
        (b"GET / HTTP/1.0\r\nCONNECTION : close\r\n\r\n", b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n"),
    ],
)
def test_a_request_says_that_it_is_the_last(head: bytes, expected: bytes):
    assert last(head) == (expected, False)


def test_an_offer_of_another_protocol_stays_as_it_is():
    head = b"GET /v1/episode HTTP/1.1\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n"
    assert last(head) == (head, True)
