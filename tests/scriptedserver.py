"""A server on loopback that answers each request as its script says: well, late, cut, rubbish, not at all."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

Body = dict[str, Any]
DIGEST = "ab" * 32


@dataclass
class Request:
    """What came, and over which connection, counted from 0."""

    head: str
    body: Body
    connection: int


@dataclass
class Step:
    """What is done with one request.

    Attributes:
        answer: bytes to send, or what makes them; None sends nothing.
        close: ends the connection after it.
        gate: is waited for first.
        pieces: bytes sent at a time; 0 sends all at once.
        pace: seconds before each piece.

    """

    answer: bytes | Callable[[Body], bytes] | None = None
    close: bool = False
    gate: threading.Event = field(default_factory=lambda: _set())
    pieces: int = 0
    pace: float = 0.0


def _set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def response(status: int, body: Any, *headers: str) -> bytes:
    """An HTTP answer with its length."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", f"content-length: {len(content)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def decided(body: Body, **changes: Any) -> Body:
    """A policy server's answer to an act request."""
    if "observation" in body:
        return {
            "id": body["id"], "action": 1, "logProbability": -0.5, "value": 2.5, "digest": DIGEST,
            "arm": "stable", "fallback": None, "episode": body.get("episode"), "t": None,
        } | changes  # fmt: skip
    n = len(body["observations"])
    return {
        "ids": body["ids"], "actions": list(range(n)), "logProbabilities": [-0.5] * n, "values": None,
        "digests": [DIGEST] * n, "arms": ["stable"] * n, "fallbacks": [None] * n,
        "episodes": body.get("episodes"), "ts": None,
    } | changes  # fmt: skip


def well(body: Body) -> bytes:
    """A good answer to any request."""
    if body.keys() & {"observation", "observations"}:
        return response(200, decided(body))
    return response(202, {"accepted": 1})


GOOD = Step(well)


class ScriptedServer:
    """Takes one step of its script for each request, then answers well."""

    def __init__(self, *script: Step) -> None:
        self.script = list(script)
        self.requests: list[Request] = []
        self.ended: list[int] = []
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def connections(self) -> int:
        """Connections that were ever made."""
        return len(self._connections)

    def hang_up(self) -> None:
        """Closes every connection, as a server does with idle ones."""
        for connection in self._connections:
            _end(connection)

    def stop(self) -> None:
        """Listens no more."""
        _end(self._listener)
        self.hang_up()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                number = len(self._connections)
                self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            with connection, connection.makefile("rb") as stream:
                while request := _read(stream, number):
                    with self._lock:
                        self.requests.append(request)
                        step = self.script.pop(0) if self.script else GOOD
                    step.gate.wait()
                    if step.answer is not None:
                        content = step.answer(request.body) if callable(step.answer) else step.answer
                        size = step.pieces or len(content) or 1
                        for first in range(0, len(content), size):
                            time.sleep(step.pace)
                            connection.sendall(content[first : first + size])
                    if step.close:
                        return
        except (OSError, ValueError):
            return
        finally:
            self.ended.append(number)


def _read(stream: Any, number: int) -> Request | None:
    lines: list[str] = []
    while line := stream.readline():
        if line == b"\r\n":
            break
        lines.append(line.decode())
    else:
        return None
    head = "".join(lines)
    length = int(head.lower().partition("content-length: ")[2].partition("\r")[0])
    return Request(head, json.loads(stream.read(length)), number)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
