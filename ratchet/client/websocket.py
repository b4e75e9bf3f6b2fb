"""As much of RFC 6455 as a client of `GET /v1/episode` needs, without I/O: bytes in, messages out."""

import base64
import hashlib
import os
from urllib.parse import quote

from ratchet.client.contract import good
from ratchet.client.errors import BadAnswer, Unreachable
from ratchet.client.http import LARGEST_BODY, LARGEST_HEAD, Reading

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x1, 0x2, 0x8, 0x9, 0xA


class Frames:
    """One connection to an episode: its handshake, then messages.

    Attributes:
        open: the handshake is done.
        closed: the server said that no more will come.

    """

    def __init__(self, name: str) -> None:
        key = base64.b64encode(os.urandom(16))
        self.path = f"/v1/episode?episode={quote(name, safe='')}"
        self.headers = (
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key.decode()}\r\n"
        )
        self._accept = base64.b64encode(hashlib.sha1(key + _MAGIC, usedforsecurity=False).digest())
        self._refusal = Reading()
        self._buffer = b""
        self._message = b""
        self.open = self.closed = False

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Takes what was received, nothing when the connection ended: messages, and bytes to send back.

        Raises:
            Unreachable: the connection ended, or the server ends it and sent nothing before.
            PolicyError: the server refused the episode; as `good`.
            BadAnswer: it is no WebSocket.

        """
        if not data or self.closed:
            raise _ended()
        self._buffer += data
        if not self.open and not self._shake_hands():
            return [], b""
        messages: list[bytes] = []
        replies = b""
        while (taken := self._take()) is not None:
            final, code, payload = taken
            if code == _CLOSE:
                self.closed = True
                # What came with it counts.
                if not messages:
                    raise _ended()
                break
            if code == _PING:
                replies += frame(payload, _PONG)
            elif code in (0, _TEXT, _BINARY):
                self._message += payload
                if final:
                    messages.append(self._message)
                    self._message = b""
        return messages, replies

    def _shake_hands(self) -> bool:
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"[: len(head)]):
            # Another answer than the upgrade: it says why.
            answer = self._refusal.feed(self._buffer)
            self._buffer = b""
            if answer is not None:
                good(answer)
                raise BadAnswer(f"the server answered {answer.status} to a WebSocket's handshake")
            return False
        if not end:
            if len(head) > LARGEST_HEAD:
                raise BadAnswer("the answer's headers are too large")
            return False
        if b"sec-websocket-accept: " + self._accept.lower() not in head.lower():
            raise BadAnswer("the server did not take the WebSocket's handshake")
        self._buffer, self.open = rest, True
        return True

    def _take(self) -> tuple[bool, int, bytes] | None:
        """One frame, if it is whole: whether it ends its message, its code, what it carries."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        length, first = buffer[1], 2
        if length in (126, 127):
            first = 4 if length == 126 else 10
            if len(buffer) < first:
                return None
            length = int.from_bytes(buffer[2:first])
        if buffer[0] & 0x70 or buffer[1] & 0x80 or length + len(self._message) > LARGEST_BODY:
            raise BadAnswer("the server does not speak WebSocket")
        end = first + length
        if len(buffer) < end:
            return None
        self._buffer = buffer[end:]
        return bool(buffer[0] & 0x80), buffer[0] & 0x0F, buffer[first:end]


def _ended() -> Unreachable:
    return Unreachable("the server ended the episode's connection")


def frame(payload: bytes, code: int = _TEXT) -> bytes:
    """A masked frame, as clients must send them."""
    length = len(payload)
    if length < 126:
        size = bytes([0x80 | length])
    elif length < 1 << 16:
        size = bytes([0xFE]) + length.to_bytes(2)
    else:
        size = bytes([0xFF]) + length.to_bytes(8)
    key = os.urandom(4)
    repeated = (key * (length // 4 + 1))[:length]
    masked = (int.from_bytes(payload) ^ int.from_bytes(repeated)).to_bytes(length)
    return bytes([0x80 | code]) + size + key + masked


GOODBYE = frame((1000).to_bytes(2), _CLOSE)
