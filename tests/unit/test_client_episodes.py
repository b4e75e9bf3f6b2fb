"""Episodes over WebSockets, with both clients against the real server."""

import asyncio
import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import pytest
from clients import PATIENT, until
from policyserver import RECURRENT, Broken, Kept, Pair, Running, policy, serving
from ratchet_inference.decisions.rewards import Rewards, RewardSettings
from redisserver import free_port
from scriptedserver import ScriptedServer

from ratchet.client import (
    Action,
    AsyncClient,
    AsyncEpisode,
    BadAnswer,
    Client,
    Episode,
    PolicyError,
    Refused,
    Retries,
    TimedOut,
    Unreachable,
)
from ratchet.client.websocket import Frames, frame

OBSERVATION = [0.1, -0.2, 0.3, 0.4]
MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Plays(Protocol):
    """Either kind of episode, called from ordinary code."""

    name: str

    def act(self, observation: Any, **arguments: Any) -> Action: ...
    def reward(self, total: float, length: int | None = None) -> bool: ...
    def close(self) -> None: ...


class Awaited:
    """An AsyncEpisode on a loop of its own."""

    def __init__(self, url: str, name: str | None, **settings: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(url, **settings)
        self._episode = AsyncEpisode(self._client, name)
        self.name = self._episode.name

    def __getattr__(self, method: str) -> Any:
        return lambda *values, **named: self._runner.run(getattr(self._episode, method)(*values, **named))

    def stop(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


Make = Callable[..., Plays]


@pytest.fixture(params=["blocking", "asyncio"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Any] = []

    def build(at: Running | str, name: str | None = None, **settings: Any) -> Plays:
        url = at if isinstance(at, str) else f"http://127.0.0.1:{at.port}"
        settings = {"timeout": PATIENT, **settings}
        if "fallback" not in settings:
            settings["strict"] = True
        if request.param == "asyncio":
            made.append(Awaited(url, name, **settings))
        else:
            made.append(Episode(Client(url, **settings), name))
        return made[-1]

    yield build
    for one in made:
        one.close()
        if isinstance(one, Awaited):
            one.stop()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(Pair(policy())) as running:
        yield running


def test_a_step_is_answered_like_a_request(make: Make, running: Running):
    episode = make(running)
    action = episode.act(np.float32(OBSERVATION), deterministic=True, seed=1)

    with Client(f"http://127.0.0.1:{running.port}", strict=True, timeout=PATIENT) as client:
        assert action == client.act(OBSERVATION, deterministic=True)._replace(id=action.id, t=0)
    for allowed in range(3):
        assert episode.act(OBSERVATION, mask=[i == allowed for i in range(3)]).action == allowed


def test_the_episode_has_its_name_its_steps_and_its_return(make: Make):
    log = Kept()
    rewards = Rewards(None, RewardSettings(), time.time)
    with serving(Pair(policy()), log, rewards) as running:
        episode = make(running, "flight 17/ü")
        for _ in range(3):
            episode.act(OBSERVATION)
        assert episode.reward(5.0, length=3)
        assert [(row.episode, row.t) for row in log.rows] == [("flight 17/ü", t) for t in range(3)]
        assert [one["mean"] for one in running.stats()["episodes"]] == [5.0]


def test_its_memory_ends_with_it(make: Make):
    with serving(Pair(policy(spec=RECURRENT))) as running:
        episode = make(running)
        episode.act(OBSERVATION)
        assert (running.stats()["sessions"], running.stats()["websockets"]) == (1, 1)
        episode.close()
        until(lambda: running.stats()["sessions"] == running.stats()["websockets"] == 0)


def test_a_memory_that_died_with_its_server_shows_in_the_answer(make: Make):
    with serving(Pair(policy(spec=RECURRENT))) as running:
        port, episode = running.port, make(running)
        steps = [episode.act(OBSERVATION).t for _ in range(3)]
    with serving(Pair(policy(spec=RECURRENT)), port=port):
        steps += [episode.act(OBSERVATION).t for _ in range(2)]
        # Before the server ends, which would wait for it.
        episode.close()
    assert steps == [0, 1, 2, 0, 1]


def test_a_wrong_step_is_refused_and_the_episode_goes_on(make: Make, running: Running):
    episode = make(running)
    episode.act(OBSERVATION)
    with pytest.raises(Refused) as caught:
        episode.act([1.0])
    assert caught.value.code == "wrong-shape"
    assert episode.act(OBSERVATION).fallback is None


def test_large_messages_go_both_ways(make: Make, running: Running):
    """Each of the three forms of a frame's length."""
    for digits in (1, 1_000, 100_000):
        with pytest.raises(Refused):
            make(running).act([0.0] * digits)


def test_an_answer_that_came_too_late_is_passed_over(make: Make):
    gate = threading.Event()
    gate.set()

    def wait(decisions: Any) -> Any:
        gate.wait()
        return decisions

    log = Kept()
    with serving(Pair(Broken(policy(), wait)), log) as running:
        episode = make(running, timeout=0.3)
        episode.act(OBSERVATION)
        gate.clear()
        with pytest.raises(TimedOut):
            episode.act(OBSERVATION)
        gate.set()
        until(lambda: len(log.rows) == 2)

        action = episode.act(OBSERVATION)

        assert [row.t for row in log.rows] == [0, 1, 2], "the connection and the episode are the same"
        assert log.rows[2].id == action.id


def test_a_broken_connection_is_opened_anew(make: Make, running: Running):
    episode = make(running)
    episode.act(OBSERVATION)

    def hang_up() -> None:
        for connection in list(running.server.listener.connections):
            connection.abort()

    running.call(hang_up)
    assert episode.act(OBSERVATION).fallback is None


@pytest.mark.parametrize("name", ["x" * 300])
def test_an_episode_that_the_server_refuses(make: Make, running: Running, name: str):
    with pytest.raises(Refused, match="1 to 256"):
        make(running, name).act(OBSERVATION)


def test_nobody_there(make: Make):
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unreachable):
        make(nowhere).act(OBSERVATION)
    assert make(nowhere, fallback=2).act(OBSERVATION)[::5] == (2, "client")


def test_a_server_that_speaks_no_websocket(make: Make):
    with ScriptedServer() as server, pytest.raises(PolicyError):
        make(server.url, timeout=1.0).act(OBSERVATION)


# Frames, without sockets

HELLO = b"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: %b\r\n\r\n"


def shaken() -> Frames:
    frames = Frames("e")
    accept: bytes = frames._accept  # pyright: ignore[reportPrivateUsage]
    for byte in HELLO % accept:
        assert frames.feed(bytes([byte])) == ([], b"")
    assert frames.open
    return frames


def test_frames_come_in_pieces_and_messages_in_frames():
    frames = shaken()
    sent = b"\x01\x02he" + b"\x89\x01!" + b"\x80\x03llo" + b"\x81\x7e\x00\x80" + b"x" * 128
    messages: list[bytes] = []
    replies = b""
    for byte in sent:
        got, reply = frames.feed(bytes([byte]))
        messages += got
        replies += reply
    assert messages == [b"hello", b"x" * 128]
    assert replies[0] == 0x8A
    assert bytes(a ^ b for a, b in zip(replies[6:], replies[2:6], strict=False)) == b"!"


@pytest.mark.parametrize("sent", [b"\x81\x81abcdx", b"\xf1\x01x", b"\x81\x7f" + b"\xff" * 8])
def test_what_is_no_websocket_is_said(sent: bytes):
    with pytest.raises(BadAnswer):
        shaken().feed(sent)


@pytest.mark.parametrize("sent", [b"", b"\x88\x02\x03\xe9"])
def test_the_servers_end_is_an_error(sent: bytes):
    with pytest.raises(Unreachable):
        shaken().feed(sent)


def test_a_wrong_accept_is_no_handshake():
    with pytest.raises(BadAnswer, match="handshake"):
        Frames("e").feed(HELLO % b"nonsense")


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65_535, 65_536])
def test_a_frame_unmasks_to_what_was_sent(length: int):
    payload = bytes(i % 251 for i in range(length))
    sent = frame(payload)
    head = 2 if length < 126 else 4 if length < 65_536 else 10
    key = sent[head : head + 4]
    assert bytes(byte ^ key[i % 4] for i, byte in enumerate(sent[head + 4 :])) == payload
    assert sent[1] & 0x80


def say(payload: bytes, code: int = 0x1) -> bytes:
    """A frame of a server, which is not masked."""
    return bytes([0x80 | code, len(payload)]) + payload


def test_an_answer_in_one_piece_with_the_end_of_the_connection_counts(make: Make):
    """The server sends what is due and its close frame at once when it drains."""
    connections = 0

    def serve(listener: socket.socket) -> None:
        nonlocal connections
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections += 1
            with connection:
                key = re.search(rb"Sec-WebSocket-Key: (\S+)", connection.recv(65_536))
                assert key
                accept = base64.b64encode(hashlib.sha1(key[1] + MAGIC, usedforsecurity=False).digest())
                connection.sendall(b"HTTP/1.1 101 x\r\nsec-websocket-accept: %b\r\n\r\n" % accept)
                sent = connection.recv(65_536)
                first = 2 if sent[1] & 0x7F < 126 else 4
                mask, body = sent[first : first + 4], sent[first + 4 :]
                id_ = json.loads(bytes(x ^ mask[i % 4] for i, x in enumerate(body)))["id"]
                answer = {"id": id_, "action": 1, "logProbability": -0.5, "value": None, "digest": "d",
                          "arm": "a", "fallback": None}  # fmt: skip
                going_away = say((1001).to_bytes(2), 0x8)
                payload = json.dumps(answer, separators=(",", ":")).encode()
                connection.sendall(say(b"", 0x9) + say(payload) + going_away)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        episode = make(f"http://127.0.0.1:{listener.getsockname()[1]}", retries=Retries(attempts=1))
        assert [episode.act(OBSERVATION).action for _ in range(2)] == [1, 1]
    assert connections == 2
