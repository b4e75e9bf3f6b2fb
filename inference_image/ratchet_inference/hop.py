"""Asking another policy server over HTTP/1.1, with connections that stay open and a budget of time."""

import asyncio
import ssl
from functools import partial
from typing import cast
from urllib.parse import urlsplit

import httptools

LARGEST_ANSWER = 16 << 20
BUSY = "canary-busy"
BREAKER_OPEN = "breaker-open"
MISDIRECTED = 421  # what a policy of other spaces answers
# After which a connection, or an answer, that a question could not wait for is given up.
LATE_SECONDS = 5.0
# Between two tries to reach the other server for the first time.
PAUSE_SECONDS = 0.1


class HopError(Exception):
    """The other server gave no answer that can be used.

    Attributes:
        reason: the word that is counted.
        asked: it is the other server that failed; False where this one did not ask it.

    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.asked = reason not in (BUSY, BREAKER_OPEN)


class _Line(asyncio.Protocol):
    """One connection, one question at a time."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.open = True
        self._body: list[bytes] = []
        self._length = 0
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        self.answer = asyncio.get_running_loop().create_future()
        self._body, self._length = [], 0
        self.transport.write(request)
        return self.answer

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("canary-invalid")

    def on_body(self, body: bytes) -> None:
        self._length += len(body)
        if self._length > LARGEST_ANSWER:
            self._fail("canary-invalid")
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        if self.answer and not self.answer.done():
            self.answer.set_result((self._parser.get_status_code(), b"".join(self._body)))
        self._parser = httptools.HttpResponseParser(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self.answer and not self.answer.done():
            self.answer.set_exception(HopError("canary-unreachable"))

    def close(self) -> None:
        self.open = False
        self.transport.abort()

    def _fail(self, reason: str) -> None:
        self.close()
        if self.answer and not self.answer.done():
            self.answer.set_exception(HopError(reason))


class Hop:
    """The way to one other server.

    Args:
        url: http://host:port or https://host:port.
        arm: as which it is asked.
        token: that it asks for, if it does.
        most: questions at once; one more fails at once.
        tls: for https, None for what the machine trusts.

    """

    def __init__(
        self,
        url: str,
        arm: str,
        token: str | None = None,
        most: int = 128,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        authorization = f"authorization: Bearer {token}\r\n" if token else ""
        self._head = (
            f"POST /v1/act HTTP/1.1\r\nhost: {parts.netloc}\r\nratchet-hop: 1\r\nratchet-arm: {arm}\r\n"
            f"{authorization}ratchet-spaces: "
        ).encode()
        self._most = most
        self._busy = 0
        self._idle: list[_Line] = []
        self._connecting: set[asyncio.Task[_Line]] = set()

    @property
    def full(self) -> bool:
        """One more question would fail."""
        return self._busy >= self._most

    async def ask(self, body: bytes, seconds: float, spaces: str) -> bytes:
        """The body of the answer to `POST /v1/act`.

        Args:
            body: of the request.
            seconds: for the answer.
            spaces: digest of those that the other server's policy must have; it refuses if it has others.

        Raises:
            HopError: too many questions at once, no connection, no answer in time, or none with status 200.

        """
        if self.full:
            raise HopError(BUSY)
        self._busy += 1
        request = b"%b%b\r\ncontent-length: %d\r\n\r\n%b" % (self._head, spaces.encode(), len(body), body)
        try:
            async with asyncio.timeout(seconds):
                while self._idle:
                    line = self._idle.pop()
                    if not line.open:
                        continue
                    try:
                        return await self._over(line, request)
                    except HopError as error:
                        # Closed by the other side while it was idle, perhaps: once more on a new one.
                        if error.reason != "canary-unreachable":
                            raise
                        break
                return await self._over(await self._connection(), request)
        except TimeoutError as error:
            raise HopError("canary-timeout") from error
        except OSError as error:
            raise HopError("canary-unreachable") from error
        finally:
            self._busy -= 1

    async def reach(self) -> bool:
        """Opens the first connection, however long that takes; False where this way was closed meanwhile."""
        while self._most:
            try:
                self._keep(await self._connect())
            except OSError:
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                return True
        return False

    def close(self) -> None:
        """Closes what is idle; what is in use ends with its answer."""
        self._most = 0
        for line in self._idle:
            line.close()
        self._idle.clear()

    async def _over(self, line: _Line, request: bytes) -> bytes:
        answer = line.ask(request)
        try:
            status, body = await asyncio.shield(answer)
        except asyncio.CancelledError:
            if not answer.done() or answer.exception():
                # Too late for this question. The connection is as good as another: it waits for the next one.
                giving_up = asyncio.get_running_loop().call_later(LATE_SECONDS, line.close)
                answer.add_done_callback(partial(self._answered_late, line, giving_up))
                raise
            # It came while this process had no processor, which is not the other server's fault.
            status, body = answer.result()
        self._keep(line)
        if status != 200:
            raise HopError("canary-spaces" if status == MISDIRECTED else "canary-error")
        return body

    def _answered_late(
        self, line: _Line, giving_up: asyncio.TimerHandle, answer: asyncio.Future[tuple[int, bytes]]
    ) -> None:
        giving_up.cancel()
        if answer.exception() is None:
            self._keep(line)

    async def _connection(self) -> _Line:
        """A new one. To look up a name may take longer than a question can wait: the next one has it then."""
        connecting = asyncio.get_running_loop().create_task(self._connect())
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connected_late)
            raise

    def _connected_late(self, connecting: asyncio.Task[_Line]) -> None:
        self._connecting.discard(connecting)
        if connecting.exception() is None:
            self._keep(connecting.result())

    async def _connect(self) -> _Line:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(LATE_SECONDS):
            _, line = await loop.create_connection(_Line, self._host, self._port, ssl=self._tls)
        return line

    def _keep(self, line: _Line) -> None:
        line.answer = None
        if line.open and self._most:
            self._idle.append(line)
        elif line.open:
            line.close()
