"""RFC 6455 for servers: the handshake, and text messages over frames. What a message means is not here."""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Callable

from ratchet_inference.exchange import Exchange
from ratchet_inference.problems import Problem, bad_request

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

NORMAL, GOING_AWAY, PROTOCOL_ERROR, TOO_BIG = 1000, 1001, 1002, 1009


def handshake(exchange: Exchange) -> bytes:
    """The `101` that accepts an upgrade.

    Raises:
        Problem: the request is no WebSocket handshake.

    """
    headers = exchange.headers
    key = headers.get(b"sec-websocket-key", b"")
    try:
        fine = len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        fine = False
    if headers.get(b"upgrade", b"").lower() != b"websocket" or not fine:
        raise bad_request("no-websocket", "open a WebSocket here: Upgrade: websocket, and a key of 16 bytes")
    if headers.get(b"sec-websocket-version") != b"13":
        raise Problem(426, "websocket-version", "only version 13 of the WebSocket protocol is spoken here")
    accept = base64.b64encode(hashlib.sha1(key + _MAGIC, usedforsecurity=False).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        b"sec-websocket-accept: %b\r\n\r\n" % accept
    )


class WebSocket:
    """One open connection.

    Args:
        transport: of the connection.
        largest: bytes of one message.
        receive: is called with each message; each is answered by one `send`.
        closed: is called once, when no more will come.

    """

    def __init__(
        self,
        transport: asyncio.Transport,
        largest: int,
        receive: Callable[[bytes], None],
        closed: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._largest = largest
        self._receive = receive
        self._closed = closed
        self._buffer = bytearray()
        self._message = bytearray()
        self._within = False
        self._due = 0
        self._leaving = False
        self._ended = False

    def send(self, message: bytes) -> None:
        """Sends a text message, the answer to one; nothing once the connection ends."""
        if not self._ended:
            self._due -= 1
            self._frame(_TEXT, message)
            self._leave()

    def data_received(self, data: bytes) -> None:
        """Takes frames, whole or in pieces."""
        if self._ended or self._leaving:
            return
        self._buffer += data
        while not self._ended and self._take():
            pass

    def connection_lost(self) -> None:
        """The socket is gone."""
        self._ended = True
        self._closed()

    def drain(self) -> None:
        """Asks the client to come again elsewhere, once it has its answers."""
        self._leaving = True
        self._leave()

    def ping(self) -> None:
        """Asks the client for a sign of life."""
        if not self._ended:
            self._frame(_PING, b"")

    def _leave(self) -> None:
        if self._leaving and not self._due:
            self._end(GOING_AWAY)

    def _take(self) -> bool:
        """Takes one frame; False when it is not whole yet."""
        buffer = self._buffer
        if len(buffer) < 2:
            return False
        final, reserved, code = buffer[0] & 0x80, buffer[0] & 0x70, buffer[0] & 0x0F
        length = buffer[1] & 0x7F
        first = 2
        if length > 125:
            first = 4 if length == 126 else 10
            if len(buffer) < first:
                return False
            length = int.from_bytes(buffer[2:first])
        control = code >= _CLOSE
        if reserved or not buffer[1] & 0x80 or (control and (length > 125 or not final)):
            return self._end(PROTOCOL_ERROR)
        if length + len(self._message) > self._largest:
            return self._end(TOO_BIG)
        end = first + 4 + length
        if len(buffer) < end:
            return False
        payload = _unmask(bytes(buffer[first : first + 4]), bytes(buffer[first + 4 : end]))
        del buffer[:end]
        match code:
            case 0x0 | 0x1 | 0x2:
                if (code == _CONTINUATION) != self._within:
                    return self._end(PROTOCOL_ERROR)
                self._within = not final
                if not final or self._message:
                    self._message += payload
                if final:
                    whole = bytes(self._message) if self._message else payload
                    self._message.clear()
                    self._due += 1
                    self._receive(whole)
            case 0x8:
                return self._end(NORMAL)
            case 0x9:
                self._frame(_PONG, payload)
            case 0xA:
                pass
            case _:
                return self._end(PROTOCOL_ERROR)
        return True

    def _end(self, code: int) -> bool:
        if not self._ended:
            self._ended = True
            self._frame(_CLOSE, code.to_bytes(2))
            self._transport.close()
        return False

    def _frame(self, code: int, payload: bytes) -> None:
        length = len(payload)
        if length < 126:
            head = bytes((0x80 | code, length))
        elif length < 1 << 16:
            head = bytes((0x80 | code, 126)) + length.to_bytes(2)
        else:
            head = bytes((0x80 | code, 127)) + length.to_bytes(8)
        self._transport.write(head + payload)


def _unmask(mask: bytes, payload: bytes) -> bytes:
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(size)
