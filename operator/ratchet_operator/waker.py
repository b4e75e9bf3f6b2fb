"""Holds what clients ask of a PolicyDeployment that sleeps until one of its servers can answer.

Of HTTP it knows the head of a connection's first request, which it lets say that it is the last one: so the
connection ends with its answer, and the client's next one goes straight to a server. All else are bytes.
"""

import asyncio
import itertools
import json
import logging
import re
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

from ratchet_operator.build.waking import Door
from ratchet_operator.metrics import HELD, HELD_SECONDS, TURNED_AWAY

log = logging.getLogger("ratchet.waker")

HEAD_SECONDS = 10.0  # for a client to say what it wants
HOLD_SECONDS = 60.0  # for a server to be there
CONNECT_SECONDS = 2.0
AGAIN_SECONDS = 0.1  # until a server that took no connection is tried again
KNOCK_SECONDS = 10.0  # for which a request counts that nobody waits for any more
REFUSED_SECONDS = 2.0  # for a client to take its refusal; one that is cut off while it talks may not see it
LARGEST_HELD = 1 << 16  # bytes of one request, and so of its head; the rest of it waits at the client
PIECE = 1 << 14  # bytes on their way from one side to the other
MOST_HELD = 1024  # connections of all PolicyDeployments that wait for a server, or have not asked yet
MOST_OPEN = 2 * MOST_HELD  # connections, with WebSockets and those that are being refused
AT_ONCE = 64  # requests that are let go to the servers of one, which have just started
Address = tuple[str, int]
_REQUEST = re.compile(rb"[A-Z]+ [!-~]+ HTTP/1\.[01]\r\n")
_REASONS = {400: "Bad Request", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}


@dataclass(slots=True)
class _Port:
    """Of one PolicyDeployment."""

    listener: asyncio.Server | None = None
    number: int | None = None
    servers: tuple[Address, ...] = ()
    are_there: asyncio.Event = field(default_factory=asyncio.Event)
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    turn: "itertools.count[int]" = field(default_factory=itertools.count)
    held: int = 0
    asked_at: float = float("-inf")

    def next(self) -> Address | None:
        """The server whose turn it is."""
        return self.servers[next(self.turn) % len(self.servers)] if self.servers else None


class Waker:
    """The ports of all PolicyDeployments that may sleep.

    Args:
        host: address of this process; empty where it has none that others reach, and nothing ever sleeps.
        ports: that may be listened at, one for each PolicyDeployment.
        asked: told namespace and name of a PolicyDeployment that is asked for something.

    """

    def __init__(self, host: str, ports: range, asked: Callable[[str, str], None]) -> None:
        self._host = host
        self._numbers = ports
        self._asked = asked
        self._ports: dict[tuple[str, str], _Port] = {}
        self._held: set[asyncio.Task[None]] = set()
        self._open: set[_Client] = set()
        self._waiting: set[_Client] = set()

    def door(self, namespace: str, name: str) -> Door:
        """The door of a PolicyDeployment as it is now."""
        port = self._ports.get((namespace, name))
        if port is None:
            return Door()
        is_asked = time.monotonic() - port.asked_at < KNOCK_SECONDS
        return Door(self._host, port.number, port.held, is_asked)

    async def open(self, namespace: str, name: str) -> None:
        """Listen, once; at the same port as the leader before where that is free."""
        at, numbers = (namespace, name), self._numbers
        if at in self._ports or not self._host or not numbers:
            return
        port = self._ports[at] = _Port()
        loop = asyncio.get_running_loop()
        first = zlib.crc32(f"{namespace}/{name}".encode()) % len(numbers)
        for number in (*numbers[first:], *numbers[:first]):
            with suppress(OSError):
                port.listener = await loop.create_server(lambda: _Client(self, at), self._host, number)
                port.number = number
                if self._ports.get(at) is not port:  # closed meanwhile
                    port.listener.close()
                return
        del self._ports[at]
        log.warning("no port is free to hold requests at", extra={"key": f"{namespace}/{name}"})

    def serve(self, namespace: str, name: str, servers: Iterable[Address]) -> None:
        """These addresses answer now."""
        port = self._ports.get((namespace, name))
        if port is not None:
            port.servers = tuple(servers)
            (port.are_there.set if port.servers else port.are_there.clear)()

    def close(self, namespace: str, name: str) -> None:
        """The PolicyDeployment is gone."""
        port = self._ports.pop((namespace, name), None)
        if port is not None and port.listener is not None:
            port.listener.close()

    async def stop(self) -> None:
        """Turn away whoever waits: another operator listens from now on."""
        for at in list(self._ports):
            self.close(*at)
        held = list(self._held)
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)

    def came(self, client: "_Client", transport: asyncio.Transport) -> None:
        """A client has connected. One too many is told so, or not even that."""
        if len(self._open) >= MOST_OPEN:
            transport.abort()
            return
        self._open.add(client)
        if len(self._waiting) >= MOST_HELD:
            client.refuse(503, "overloaded", "too many requests wait for servers to start", retry_after=1)
        else:
            self._waiting.add(client)

    def waits_no_more(self, client: "_Client") -> None:
        """A client leaves its place to the next one."""
        self._waiting.discard(client)

    def went(self, client: "_Client") -> None:
        """A client's connection is gone."""
        self._open.discard(client)
        self._waiting.discard(client)

    def hold(self, client: "_Client") -> asyncio.Task[None] | None:
        """Wait for a server on behalf of a client; None where nobody is served here any more."""
        port = self._ports.get(client.at)
        if port is None:
            return None
        port.asked_at = time.monotonic()
        task = asyncio.create_task(self._bring(port, client))
        self._held.add(task)
        task.add_done_callback(self._held.discard)
        self._asked(*client.at)
        return task

    async def _bring(self, port: _Port, client: "_Client") -> None:
        began = time.perf_counter()
        port.held += 1
        HELD.inc()
        is_held = True

        def let_go() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                port.held -= 1
                HELD.dec()

        try:
            async with asyncio.timeout(HOLD_SECONDS) as limit, port.room:
                server = await _reach(port)
                limit.reschedule(None)
                HELD_SECONDS.observe(time.perf_counter() - began)
                let_go()
                client.join(server)
                if client.upgrades:
                    self.waits_no_more(client)
                else:
                    await server.ended
        except TimeoutError:
            client.refuse(503, "asleep", "no server has started in time: ask again", retry_after=5)
        except asyncio.CancelledError:
            client.refuse(503, "asleep", "whoever waits for a server goes: ask again", retry_after=1)
            raise
        finally:
            let_go()


async def _reach(port: _Port) -> "_Server":
    """A connection to a server."""
    loop = asyncio.get_running_loop()
    while True:
        await port.are_there.wait()
        address = port.next()
        if address is not None:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    _, server = await loop.create_connection(_Server, *address)
                    return server
        await asyncio.sleep(AGAIN_SECONDS)


def last(head: bytes) -> tuple[bytes, bool]:
    """The head of a request that says it is the connection's last, and whether it asks for another protocol:
    then it stays as it is.

    Raises:
        ValueError: it is no request of HTTP/1.

    """
    if not _REQUEST.match(head):
        raise ValueError("send a request of HTTP/1")
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    kept: list[bytes] = []
    for line in lines:
        name, _, value = line.partition(b":")
        if name.strip().lower() != b"connection":
            kept.append(line)
        elif b"upgrade" in value.lower():
            return head, True
    return b"\r\n".join([first, *kept, b"Connection: close", b"", b""]), False


class _Side(asyncio.BufferedProtocol):
    """One of two connections of which each gets what the other one says, in pieces of a size that is ours: a
    Protocol would get a quarter of a MiB at once.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None
        self._piece = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(PIECE)

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where the next piece goes."""
        self._piece = bytearray(self.room())
        return self._piece

    def buffer_updated(self, nbytes: int) -> None:
        """A piece has come."""
        data, self._piece = bytes(memoryview(self._piece)[:nbytes]), bytearray()
        self.said(data)

    def room(self) -> int:
        """Bytes that the next piece may have."""
        return PIECE

    def said(self, data: bytes) -> None:
        """For the other one."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """It says no more, and may still listen."""
        other = self.other.transport if self.other is not None else None
        if other is not None and other.can_write_eof() and not other.is_closing():
            other.write_eof()
        return other is not None

    def connection_lost(self, exc: Exception | None) -> None:
        """What the other one was told arrives, and no more comes."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def pause_writing(self) -> None:
        """It takes less than the other one says."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """It takes more."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()


class _Server(_Side):
    """A connection to a server, which ends it with its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def eof_received(self) -> bool:
        """The answer is whole."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """As of either side."""
        super().connection_lost(exc)
        if not self.ended.done():
            self.ended.set_result(None)


class _Client(_Side):
    """A client's connection.

    Attributes:
        at: namespace and name of the PolicyDeployment that it asks.
        upgrades: its request asks for a WebSocket.

    """

    def __init__(self, waker: Waker, at: tuple[str, str]) -> None:
        super().__init__()
        self.at = at
        self.upgrades = False
        self._waker = waker
        self._said = bytearray()
        self._waits: asyncio.Task[None] | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._is_refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It has not said anything yet: whoever looks whether a port is open wakes nobody."""
        super().connection_made(transport)
        self._limit = asyncio.get_running_loop().call_later(HEAD_SECONDS, transport.close)
        self._waker.came(self, cast(asyncio.Transport, transport))

    def room(self) -> int:
        """What may be held of it, until there is somebody to say it to."""
        return PIECE if self.other is not None or self._is_refused else LARGEST_HELD - len(self._said)

    def said(self, data: bytes) -> None:
        """A piece of its request."""
        if self.other is not None:
            super().said(data)
            return
        if self._is_refused:
            return
        self._said += data
        if self._waits is None:
            self._ask()
        if len(self._said) >= LARGEST_HELD and self.transport is not None:
            self.transport.pause_reading()

    def _ask(self) -> None:
        end = self._said.find(b"\r\n\r\n") + 4
        if end < 4:
            if len(self._said) >= LARGEST_HELD:
                self.refuse(431, "head-too-large", "send fewer headers")
            return
        if self._limit is not None:
            self._limit.cancel()
        try:
            head, self.upgrades = last(bytes(self._said[:end]))
        except ValueError as error:
            self.refuse(400, "bad-request", str(error))
            return
        self._said[:end] = head
        self._waits = self._waker.hold(self)
        if self._waits is None:
            self.refuse(503, "asleep", "nothing is held here any more: ask again", retry_after=1)

    def eof_received(self) -> bool:
        """Who goes before there is a server waits for none."""
        return super().eof_received() if self.other is not None else False

    def connection_lost(self, exc: Exception | None) -> None:
        """As of either side."""
        super().connection_lost(exc)
        self.transport = None
        self._waker.went(self)
        if self._limit is not None:
            self._limit.cancel()
        if self._waits is not None and self.other is None:
            self._waits.cancel()

    def join(self, server: _Server) -> None:
        """From now on the two talk to each other."""
        if server.transport is None or self.transport is None:
            if server.transport is not None:
                server.transport.abort()
            return
        self.other, server.other = server, self
        self.transport.resume_reading()  # and no more of it where that is too much for the server
        server.transport.write(bytes(self._said))
        self._said.clear()

    def refuse(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        """Answer as a policy server does, and close once the client has; not once a server answers."""
        transport = self.transport
        if transport is None or self.other is not None or self._is_refused or transport.is_closing():
            return
        TURNED_AWAY.labels(code).inc()
        body = json.dumps({"error": {"code": code, "message": message}}).encode()
        wait = f"retry-after: {retry_after}\r\n" if retry_after is not None else ""
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\n{wait}"
            f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._is_refused = True
        self._waker.waits_no_more(self)
        self._said.clear()
        transport.write(head.encode() + body)
        transport.write_eof()
        transport.resume_reading()  # a socket that is closed with something unread takes back what it said
        if self._limit is not None:
            self._limit.cancel()
        self._limit = asyncio.get_running_loop().call_later(REFUSED_SECONDS, transport.abort)
