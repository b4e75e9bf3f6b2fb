"""One HTTP request, and the place where its answer goes. Nothing of sockets."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

from ratchet_inference.problems import Problem

JSON = b"application/json"
_PREFIX = {
    status.value: b"HTTP/1.1 %d %s\r\ncontent-type: " % (status.value, status.phrase.encode())
    for status in HTTPStatus
}
_OK_JSON = _PREFIX[200] + JSON + b"\r\ncontent-length: %d\r\n\r\n%b"


class Upgraded(Protocol):
    """What takes a connection over after `101 Switching Protocols`."""

    def data_received(self, data: bytes) -> None:
        """More bytes of the new protocol."""
        ...

    def connection_lost(self) -> None:
        """The socket is gone."""
        ...

    def drain(self) -> None:
        """Ends as soon as the new protocol allows it."""
        ...

    def ping(self) -> None:
        """Asks the client for a sign of life."""
        ...


class Carrier(Protocol):
    """The connection that a request came over."""

    def flush(self) -> None:
        """Sends the answers that are next in order."""
        ...

    def refused(self, problem: Problem) -> None:
        """Counts a request that was wrong."""
        ...

    def part(self) -> None:
        """Ends after the answers that are due."""
        ...

    def hand_over(self, answer: bytes, build: Callable[[asyncio.Transport], Upgraded]) -> None:
        """The connection speaks another protocol from here on."""
        ...


class Exchange:
    """One request, and the place where its answer goes. Answers may come in any order.

    Attributes:
        received: of perf_counter.
        aged: its connection is old, and may end between two requests.
        last: it ends after this one.

    """

    __slots__ = (
        "_connection",
        "aged",
        "answer",
        "body",
        "headers",
        "last",
        "method",
        "path",
        "query",
        "received",
    )

    def __init__(self, connection: Carrier, method: bytes, path: bytes, query: bytes) -> None:
        self._connection = connection
        self.method = method
        self.path = path
        self.query = query
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.received = 0.0
        self.answer: bytes | None = None
        self.aged = self.last = False

    def respond(self, status: int, body: bytes, kind: bytes = JSON, headers: bytes = b"") -> None:
        """Answers; `headers` are whole lines."""
        if status == 200 and not headers and not self.last and kind is JSON:
            self.answer = _OK_JSON % (len(body), body)
        else:
            if self.last:
                headers += b"connection: close\r\n"
            length = b"\r\ncontent-length: %d\r\n" % len(body)
            content = b"" if self.method == b"HEAD" else body
            self.answer = b"".join((_PREFIX[status], kind, length, headers, b"\r\n", content))
        self._connection.flush()

    def refuse(self, problem: Problem, body: bytes | None = None) -> None:
        """Answers with a problem, in words of its own or in `body`, and counts it."""
        self._connection.refused(problem)
        headers = b"retry-after: 1\r\n" if problem.status == 503 else b""
        self.respond(problem.status, body or problem.body(), headers=headers)

    def reply(self, outcome: bytes | Problem) -> None:
        """Answers with JSON, or with a problem."""
        if isinstance(outcome, bytes):
            self.respond(200, outcome)
        else:
            self.refuse(outcome)

    def part(self) -> None:
        """Lets the connection end with this answer."""
        self._connection.part()

    def upgrade(self, answer: bytes, build: Callable[[asyncio.Transport], Upgraded]) -> None:
        """Sends `101`, and hands the connection over."""
        self._connection.hand_over(answer, build)
