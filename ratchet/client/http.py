"""As much of HTTP/1.1 as a client of one server needs (RFC 9112), without I/O: bytes in, an answer out.

A general client library costs several times what the policy server itself needs for a request; see
docs/client.md for the figures. Answers by Content-Length, in chunks and until the connection closes are read.
"""

from typing import NamedTuple

from ratchet.client.errors import BadAnswer, Unreachable

LARGEST_HEAD = 64 << 10
LARGEST_BODY = 64 << 20


class Answer(NamedTuple):
    """A whole answer.

    Attributes:
        headers: by lower-case name; of repeated ones the last.
        reusable: whether the connection takes another request.

    """

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    reusable: bool


class Reading:
    """One answer as it arrives."""

    def __init__(self) -> None:
        self._buffer = b""
        self._headers: dict[bytes, bytes] | None = None
        self._status = 0
        self._start = 0
        self._length: int | None = None
        self._chunks: list[bytes] | None = None
        self._keep = True
        self.begun = False

    def feed(self, data: bytes) -> Answer | None:
        """Takes what was received; the answer once it is whole.

        Args:
            data: empty when the connection ended.

        Raises:
            Unreachable: the connection ended too early.
            BadAnswer: it is not HTTP, or larger than an answer can be.

        """
        if not data:
            return self._ended()
        self.begun = True
        self._buffer = self._buffer + data if self._buffer else data
        while self._headers is None:
            if not self._head():
                return None
        if self._chunks is not None:
            return self._chunked()
        have = len(self._buffer) - self._start
        if self._length is None:
            if have > LARGEST_BODY:
                raise BadAnswer(f"the answer is larger than {LARGEST_BODY} bytes")
            return None
        if have < self._length:
            return None
        return self._answer(self._buffer[self._start : self._start + self._length], have == self._length)

    def _head(self) -> bool:
        """Reads status and headers; False until they are there."""
        head, end, _ = self._buffer.partition(b"\r\n\r\n")
        if len(head) > LARGEST_HEAD:
            raise BadAnswer("the answer's headers are too large")
        if not end:
            if not b"HTTP/1.".startswith(head[:7]):
                raise BadAnswer("the answer is not HTTP/1.1")
            return False
        first, _, rest = head.partition(b"\r\n")
        version, _, words = first.partition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not words[:3].isdigit():
            raise BadAnswer("the answer is not HTTP/1.1")
        status = int(words[:3])
        if 100 <= status < 200:
            self._buffer = self._buffer[len(head) + 4 :]
            if status == 101:
                raise BadAnswer("the server changed the protocol unasked")
            return bool(self._buffer) and self._head()
        headers: dict[bytes, bytes] = {}
        for line in rest.split(b"\r\n") if rest else ():
            name, colon, value = line.partition(b":")
            if not colon:
                raise BadAnswer("the answer has a line that is no header")
            headers[name.lower()] = value.strip()
        self._status, self._headers, self._start = status, headers, len(head) + 4
        connection = headers.get(b"connection", b"").lower()
        self._keep = connection != b"close" if version == b"HTTP/1.1" else connection == b"keep-alive"
        if status in (204, 304):
            self._length = 0
        elif headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            self._chunks = []
        elif b"content-length" in headers:
            length = headers[b"content-length"]
            if not length.isdigit() or int(length) > LARGEST_BODY:
                raise BadAnswer(f"the answer says that it is {length[:30].decode('latin-1')} bytes long")
            self._length = int(length)
        return True

    def _chunked(self) -> Answer | None:
        assert self._chunks is not None  # noqa: S101 - for the type
        while True:
            end = self._buffer.find(b"\r\n", self._start)
            if end < 0:
                return None
            digits = self._buffer[self._start : end].partition(b";")[0].strip()
            try:
                size = int(digits, 16)
            except ValueError as error:
                raise BadAnswer("the answer has a chunk without a length") from error
            if not 0 <= size <= LARGEST_BODY or sum(map(len, self._chunks)) + size > LARGEST_BODY:
                raise BadAnswer(f"the answer is larger than {LARGEST_BODY} bytes")
            if size == 0:
                # Trailers would follow; without any there is one empty line.
                if self._buffer[end + 2 : end + 4] == b"\r\n":
                    return self._answer(b"".join(self._chunks), len(self._buffer) == end + 4)
                after = self._buffer.find(b"\r\n\r\n", end)
                return self._answer(b"".join(self._chunks), False) if after >= 0 else None
            last = end + 2 + size
            if len(self._buffer) < last + 2:
                return None
            self._chunks.append(self._buffer[end + 2 : last])
            # What was read goes, so that every byte is looked at once.
            self._buffer, self._start = self._buffer[last + 2 :], 0

    def _ended(self) -> Answer | None:
        if self._headers is not None and self._length is None and self._chunks is None:
            return self._answer(self._buffer[self._start :], False)
        raise Unreachable("the server closed the connection before its answer was whole")

    def _answer(self, body: bytes, nothing_more: bool) -> Answer:
        assert self._headers is not None  # noqa: S101 - for the type
        return Answer(self._status, self._headers, body, self._keep and nothing_more)
