"""Asking another policy server over HTTP/1.1, with connections that stay open and a budget of time."""

import asyncio
import ssl
from typing import cast
from urllib.parse import urlsplit

import httptools

LARGEST_ANSWER = 16 << 20
BUSY = "canary-busy"
BREAKER_OPEN = "breaker-open"
MISDIRECTED = 421  # what a policy of other spaces answers


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
        line: _Line | None = None
        try:
            async with asyncio.timeout(seconds):
                while self._idle and not (line := self._idle.pop()).open:
                    line = None
                request = b"%b%b\r\ncontent-length: %d\r\n\r\n%b" % (
                    self._head,
                    spaces.encode(),
                    len(body),
                    body,
                )
                if line is not None:
                    try:
                        return self._used(line, *await line.ask(request))
                    except HopError as error:
                        # Closed by the other side while it was idle, perhaps: once more on a new one.
                        if error.reason != "canary-unreachable":
                            raise
                line = await self._connect()
                return self._used(line, *await line.ask(request))
        except TimeoutError as error:
            if line is not None:
                line.close()
            raise HopError("canary-timeout") from error
        except OSError as error:
            raise HopError("canary-unreachable") from error
        finally:
            self._busy -= 1

    def close(self) -> None:
        """Closes what is idle; what is in use ends with its answer."""
        self._most = 0
        for line in self._idle:
            line.close()
        self._idle.clear()

    async def _connect(self) -> _Line:
        loop = asyncio.get_running_loop()
        _, line = await loop.create_connection(_Line, self._host, self._port, ssl=self._tls)
        return line

    def _used(self, line: _Line, status: int, body: bytes) -> bytes:
        line.answer = None
        if line.open and self._most:
            self._idle.append(line)
        elif line.open:
            line.close()
        if status != 200:
            raise HopError("canary-spaces" if status == MISDIRECTED else "canary-error")
        return body
