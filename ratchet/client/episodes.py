"""Episodes over a WebSocket each: for real-time control, where every step comes at once.

The server forgets an episode when its connection ends, so nothing waits for a time limit. An answer that came
too late is passed over, and the connection with the episode's memory is kept; a broken one is opened anew.
"""

import asyncio
import contextlib
import socket
from collections import deque
from types import TracebackType
from typing import Any, Self

from ratchet.client.asynchronous import AsyncClient
from ratchet.client.blocking import READ, Client, connect, left
from ratchet.client.contract import Action, act_body, good, message, read_action
from ratchet.client.errors import BadAnswer, PolicyError, TimedOut, Unreachable
from ratchet.client.websocket import GOODBYE, Frames, frame


class Episode:
    """One episode, one thread.

    The server closes a connection without a step for longer than its `--idle-seconds`, since nothing here
    answers its pings between two steps; the next step opens another, with an empty memory. `AsyncEpisode`
    answers them.

    Args:
        client: whose server, timeout, retries and safe action are used.
        name: of the episode; by default a new one.

    """

    def __init__(self, client: Client, name: str | None = None) -> None:
        self._client = client
        self.name = name or client.names.next()
        self._socket: socket.socket | None = None
        self._frames = Frames(self.name)
        self._received: deque[bytes] = deque()
        # Answers that nobody waits for any more, and that come before the next one.
        self._owed = 0
        self._policy: str | None = None

    def act(
        self,
        observation: Any,
        *,
        mask: Any = None,
        deterministic: bool | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> Action:
        """As `Client.act`."""
        client = self._client
        id_ = client.names.next()
        try:
            request = frame(
                act_body(observation, id_, None, self._policy, mask, deterministic, temperature, seed)
            )
            action = client.attempt(lambda deadline: read_action(self._exchange(request, deadline), id_))
        except PolicyError as error:
            return client.instead(error, observation, mask, id_)
        if action.fallback is None:
            self._policy = action.digest
        return action

    def reward(self, total: float, length: int | None = None) -> bool:
        """The episode's return; as `Client.reward`."""
        return self._client.reward(total, episode=self.name, length=length)

    def close(self) -> None:
        """Ends the episode."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendall(GOODBYE)
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, request: bytes, deadline: float) -> Any:
        try:
            if self._socket is None:
                self._open(deadline)
            assert self._socket is not None  # noqa: S101 - for the type
            self._send(self._socket, request, deadline)
            self._owed += 1
            while True:
                while self._received:
                    self._owed -= 1
                    body = self._received.popleft()
                    if self._owed == 0:
                        if self._frames.closed:
                            self._drop()
                        return good(message(body))
                self._receive(deadline)
        except TimeoutError as error:
            raise TimedOut("no answer in time") from error
        except OSError as error:
            self._drop()
            raise Unreachable(f"the connection broke: {error}") from error
        except (Unreachable, BadAnswer):
            self._drop()
            raise

    def _send(self, to: socket.socket, request: bytes, deadline: float) -> None:
        to.settimeout(left(deadline))
        try:
            to.sendall(request)
        except TimeoutError:
            # Half a frame may be on its way.
            self._drop()
            raise

    def _open(self, deadline: float) -> None:
        self._socket = connect(self._client.endpoint, deadline)
        self._frames, self._owed = Frames(self.name), 0
        self._received.clear()
        try:
            self._socket.settimeout(left(deadline))
            self._socket.sendall(self._client.endpoint.get(self._frames.path, self._frames.headers))
            while not self._frames.open:
                self._receive(deadline)
        except (PolicyError, OSError):
            self._drop()
            raise

    def _receive(self, deadline: float) -> None:
        assert self._socket is not None  # noqa: S101 - for the type
        self._socket.settimeout(left(deadline))
        messages, replies = self._frames.feed(self._socket.recv(READ))
        self._received += messages
        if replies:
            self._socket.sendall(replies)

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class AsyncEpisode:
    """As `Episode`, with coroutines; one step at a time."""

    def __init__(self, client: AsyncClient, name: str | None = None) -> None:
        self._client = client
        self.name = name or client.names.next()
        self._connection: _Connection | None = None
        self._policy: str | None = None

    async def act(
        self,
        observation: Any,
        *,
        mask: Any = None,
        deterministic: bool | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> Action:
        """As `Client.act`."""
        client = self._client
        id_ = client.names.next()

        async def once() -> Action:
            return read_action(good(message(await self._exchange(request))), id_)

        try:
            request = frame(
                act_body(observation, id_, None, self._policy, mask, deterministic, temperature, seed)
            )
            action = await client.attempt(once)
        except PolicyError as error:
            return client.instead(error, observation, mask, id_)
        if action.fallback is None:
            self._policy = action.digest
        return action

    async def reward(self, total: float, length: int | None = None) -> bool:
        """The episode's return; as `Client.reward`."""
        return await self._client.reward(total, episode=self.name, length=length)

    async def close(self) -> None:
        """Ends the episode."""
        if self._connection is not None:
            self._connection.end()
            self._connection = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _exchange(self, request: bytes) -> bytes:
        if self._connection is None or self._connection.failure is not None:
            self._connection = await self._open()
        return await self._connection.ask(request)

    async def _open(self) -> "_Connection":
        endpoint, frames = self._client.endpoint, Frames(self.name)
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(frames), endpoint.host, endpoint.port, ssl=endpoint.tls
            )
        except TimeoutError:
            raise
        except OSError as error:
            raise Unreachable(f"no connection to {endpoint}: {error}") from error
        try:
            await connection.shake_hands(endpoint.get(frames.path, frames.headers))
        except BaseException:
            connection.end()
            raise
        return connection


class _Connection(asyncio.Protocol):
    """One WebSocket. Who stopped waiting leaves a cancelled future, whose answer is passed over."""

    def __init__(self, frames: Frames) -> None:
        self.failure: PolicyError | None = None
        self._frames = frames
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server is there."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Messages, in the order of the questions."""
        assert self._transport is not None  # noqa: S101 - for the type
        try:
            messages, replies = self._frames.feed(data)
        except PolicyError as error:
            self._fail(error)
            return
        if replies:
            self._transport.write(replies)
        if self._frames.open and not self._opened.done():
            self._opened.set_result(None)
        for body in messages:
            waiter = self._waiting.popleft() if self._waiting else None
            if waiter is not None and not waiter.done():
                waiter.set_result(body)
        if self._frames.closed:
            self._fail(Unreachable("the server ended the episode's connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._fail(Unreachable(f"the connection broke: {exc or 'closed'}"))

    async def shake_hands(self, request: bytes) -> None:
        """Opens the WebSocket; raises as `Frames.feed`."""
        assert self._transport is not None  # noqa: S101 - for the type
        self._transport.write(request)
        await self._opened

    async def ask(self, request: bytes) -> bytes:
        """Sends a question and receives its answer; raises as `Frames.feed`."""
        assert self._transport is not None  # noqa: S101 - for the type
        if self.failure is not None:
            raise self.failure
        waiter: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._transport.write(request)
        return await waiter

    def end(self) -> None:
        """Says goodbye."""
        if self._transport is not None and not self._transport.is_closing():
            if self._frames.open:
                self._transport.write(GOODBYE)
            self._transport.close()

    def _fail(self, error: PolicyError) -> None:
        if self.failure is None:
            self.failure = error
            for waiter in (self._opened, *self._waiting):
                if not waiter.done():
                    waiter.set_exception(error)
        if self._transport is not None:
            self._transport.abort()
