"""HTTP/1.1 on a socket: parsing with limits, answers in order, timeouts, drain. Never what is answered."""

import asyncio
import random
import socket
import ssl
import struct
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import httptools

from ratchet_inference.exchange import Exchange, Upgraded
from ratchet_inference.problems import Problem

# `Expect` was answered when the head came first.
_OF_THE_OFFER = frozenset({b"upgrade", b"connection", b"expect"})
# A client that pipelines more than this waits until some are answered.
PIPELINE = 256
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time at all


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may cost.

    Attributes:
        body: bytes of one request.
        head: bytes of request line and headers.
        connections: open at once.
        request_seconds: from the first byte of a request to its last, and for a client to take its answer.
        idle_seconds: between two requests; after `101`, without a sign of life.
        connection_seconds: after which a connection may be ended between two requests.

    """

    body: int = 8 << 20
    head: int = 16 << 10
    connections: int = 20_000
    request_seconds: float = 10.0
    idle_seconds: float = 120.0
    connection_seconds: float = 30.0


class Listener:
    """What the connections of one port share."""

    def __init__(
        self, handle: Callable[[Exchange], None], limits: Limits, refusals: Counter[str] | None = None
    ) -> None:
        self.handle = handle
        self.limits = limits
        self.refusals: Counter[str] = Counter() if refusals is None else refusals
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.draining = False
        self._left = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Opens the port; 0 takes a free one. The port."""
        self._server = await self.loop.create_server(
            lambda: Connection(self), host, port, backlog=4096, ssl=tls, reuse_port=False
        )
        return self._server.sockets[0].getsockname()[1]

    def forget(self, connection: "Connection") -> None:
        """A connection is closed."""
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self._left.set()

    async def drain(self, seconds: float) -> None:
        """Accepts no more, lets what is open end, and after `seconds` closes what is left."""
        self.draining = True
        # It may have been left by all before, and others have come since.
        self._left.clear()
        if self._server:
            self._server.close()
        for connection in list(self.connections):
            connection.drain()
        if self.connections:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._left.wait()
        for connection in list(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """One client. Bytes in, exchanges to the listener's handler, answers out in the order of the requests."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._limits = listener.limits
        self._most_head, self._most_body = listener.limits.head, listener.limits.body
        self._parser = httptools.HttpRequestParser(self)
        self._open: deque[Exchange] = deque()
        self._upgraded: Upgraded | None = None
        self._discarding = False
        self._paused = False
        self._time = listener.loop.time
        self._since = self._time()
        self._reading = False  # within a request
        self._in_head = False
        self._offered = False  # another protocol than is spoken here
        self._progress = 0  # requests begun and pieces of bodies
        self._head = self._fed = 0
        self._method = self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._length = 0
        self._problem: Problem | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast("asyncio.Transport", transport)
        listener = self.listener
        listener.connections.add(self)
        # A ping has a quarter of the time to be answered.
        self._pause = min(self._limits.request_seconds, self._limits.idle_seconds / 4)
        # Those that came together are not looked at together (10,000 would take 18 ms), nor end together.
        spread = random.uniform(0.5, 1.0)
        self._timer = listener.loop.call_later(spread * self._pause, self._look)
        self._old = self._since + spread * self._limits.connection_seconds
        if len(listener.connections) > self._limits.connections:
            self._refuse(
                Problem(503, "too-many-connections", "too many connections: close some, or try later")
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone; answers to it are dropped."""
        self._timer.cancel()
        self.listener.forget(self)
        self._discarding = True
        self._open.clear()
        if self._upgraded:
            self._upgraded.connection_lost()
            self._upgraded = None
        # It refers to this connection: without the cycle both go at once.
        del self._parser

    def data_received(self, data: bytes) -> None:
        """Parses; every complete request is handed on at once."""
        if self._upgraded:
            self._since = self._time()
            self._upgraded.data_received(data)
            return
        # A header or trailer that never ends reaches no callback, so its bytes are counted here.
        progress = self._progress
        rest = memoryview(data)
        while rest and not self._discarding:
            rest = self._feed(rest)
        if self._reading and self._progress == progress and not self._discarding:
            self._fed += len(data)
            if self._fed > self._limits.head:
                self._refuse(_head_too_large(self._limits.head))

    def _feed(self, data: memoryview) -> memoryview:
        """Parses; what is left where the parser stopped at the offer of another protocol."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if self._upgraded:
                self._upgraded.data_received(bytes(rest))
                return data[:0]
            request = self._without_offer() if self._offered else b""
            self._offered = False
            self._parser = httptools.HttpRequestParser(self)
            if request:
                self._feed(memoryview(request))
            return rest
        except httptools.HttpParserError as error:
            if not self._discarding:
                self._refuse(self._problem or Problem(400, "bad-http", f"not HTTP/1.1: {error}"))
        return data[:0]

    def eof_received(self) -> bool:
        """The client sends no more; what it asked is still answered."""
        if self._upgraded or not self._open:
            return False
        self._discarding = True
        self._open[-1].last = True
        return True

    def pause_writing(self) -> None:
        """The client does not take its answers: take no more requests from it."""
        self._paused = True
        self._since = self._time()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._paused = False
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # What the parser calls.

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._reading = self._in_head = True
        self._progress += 1
        self._since = self._time()
        self._head = self._fed = 0
        self._url = b""
        self._headers = {}
        self._length = 0

    def on_url(self, url: bytes) -> None:
        """The target, which may come in pieces."""
        self._url += url
        if len(self._url) > self._most_head:
            self._stop(Problem(414, "long-url", "the URL is too long"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one trailer, which nobody here reads."""
        if not self._in_head:
            return
        self._head += len(name) + len(value)
        if self._head > self._most_head:
            self._stop(_head_too_large(self._most_head))
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Before the body: what can be refused without it is."""
        self._in_head = False
        self._method = self._parser.get_method()
        if self._method == b"CONNECT":
            self._stop(Problem(405, "wrong-method", "this is no proxy: send GET, POST or PUT with a path"))
        headers = self._headers
        if not self._parser.should_upgrade():
            headers.pop(b"upgrade", None)
        elif not self._wants_websocket():
            # Some clients offer h2c with every request; the parser stops there, and does not read the body.
            self._offered = True
        length = headers.get(b"content-length")
        if length is not None and int(length) > self._most_body:
            self._stop(_body_too_large(self._limits.body))
        if b"expect" in headers and headers[b"expect"].lower() == b"100-continue" and not self._open:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._progress += 1
        self._fed = 0
        self._length += len(body)
        if self._length > self._most_body:
            self._stop(_body_too_large(self._limits.body))
        self._body.append(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._discarding:
            return
        if self._offered:
            return
        self._reading = False
        self._since = self._time()
        path, _, query = self._url.partition(b"?")
        exchange = Exchange(self, self._method, path, query)
        exchange.headers = self._headers
        if self._body:
            exchange.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body = []
        exchange.received = time.perf_counter()
        exchange.aged = self._since >= self._old
        exchange.last = self.listener.draining or not self._parser.should_keep_alive()
        self._open.append(exchange)
        # What comes after the last request is not answered, so it must not be done either.
        self._discarding = exchange.last
        self.listener.handle(exchange)
        if len(self._open) > PIPELINE:
            self._transport.pause_reading()

    # What exchanges call.

    def flush(self) -> None:
        """Sends the answers that are next in order."""
        waiting = self._open
        full = len(waiting) > PIPELINE
        while waiting and waiting[0].answer is not None:
            exchange = waiting.popleft()
            assert exchange.answer is not None  # noqa: S101 - for the type
            self._transport.write(exchange.answer)
            if exchange.last:
                self._finish()
                return
        if full and len(waiting) <= PIPELINE and not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def refused(self, problem: Problem) -> None:
        """Counts a request that was wrong."""
        self.listener.refusals[problem.code] += 1

    def part(self) -> None:
        """Ends after the answers that are due."""
        if self._open:
            self._open[-1].last = self._discarding = True

    def hand_over(self, answer: bytes, build: Callable[[asyncio.Transport], Upgraded]) -> None:
        """The connection speaks another protocol from here on."""
        self._open.clear()
        self._discarding = False
        self._transport.write(answer)
        self._upgraded = build(self._transport)

    def drain(self) -> None:
        """Ends after the answers that are due, at once if none is."""
        if self._upgraded:
            self._upgraded.drain()
        elif self._open:
            self._open[-1].last = self._discarding = True
        elif not self._reading:
            self._finish()

    def abort(self) -> None:
        """Ends now, by a reset: else the kernel keeps for minutes what the client does not take."""
        endpoint = self._transport.get_extra_info("socket")
        if endpoint is not None:
            with suppress(OSError):
                endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def _wants_websocket(self) -> bool:
        """It does, has no body, and no answer is due before `101`."""
        headers = self._headers
        return (
            headers.get(b"upgrade", b"").lower() == b"websocket"
            and self._method == b"GET"
            and headers.get(b"content-length", b"0") == b"0"
            and b"transfer-encoding" not in headers
            and not self._open
        )

    def _without_offer(self) -> bytes:
        """The head of the request, without what offers another protocol."""
        version = self._parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self._method, self._url, version)]
        if b"close" in self._headers.get(b"connection", b"").lower():
            lines.append(b"connection: close")
        lines += [b"%b: %b" % pair for pair in self._headers.items() if pair[0] not in _OF_THE_OFFER]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _stop(self, problem: Problem) -> None:
        """Refuses from within the parser."""
        self._problem = problem
        raise problem

    def _refuse(self, problem: Problem) -> None:
        """Answers a request that could not be read, as the last of this connection."""
        self._discarding = True
        exchange = Exchange(self, b"", b"", b"")
        exchange.last = True
        self._open.append(exchange)
        exchange.refuse(problem)

    def _finish(self) -> None:
        """Closes so that the last answer arrives: a socket with unread bytes would reset it."""
        self._open.clear()
        self._discarding = True
        self._since = self._time()
        if self._reading and self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _look(self) -> None:
        """Now and then, closes what is idle, slow, or deaf."""
        limits = self._limits
        waited = self._time() - self._since
        if self._paused or self._discarding:
            # Where an answer is still being made, it is not the client who is slow.
            if waited > limits.request_seconds and (self._paused or not self._open):
                self.abort()
        elif self._upgraded:
            if waited > limits.idle_seconds:
                self.abort()
            elif waited > limits.idle_seconds / 2:
                self._upgraded.ping()
        elif self._reading:
            if waited > limits.request_seconds:
                words = f"the request was not complete after {limits.request_seconds:g} s: send it at once"
                self._refuse(Problem(408, "slow-request", words))
        elif not self._open and waited > limits.idle_seconds:
            self._transport.close()
        self._timer = self.listener.loop.call_later(self._pause, self._look)


def _head_too_large(limit: int) -> Problem:
    return Problem(431, "large-headers", f"the headers are larger than {limit} bytes")


def _body_too_large(limit: int) -> Problem:
    return Problem(
        413, "large-body", f"the body is larger than {limit} bytes: send fewer observations at once"
    )
