"""Commands between the engine process and its workers: MessagePack frames over a socket pair."""

from __future__ import annotations

import select
import socket
import struct
from typing import Any

import msgspec

from baton.errors import BatonError

_LENGTH = struct.Struct("<I")
_CHUNK_BYTES = 1 << 16


class PeerGone(Exception):  # noqa: N818 - how a channel ends in order, too
    """The other end of the channel is closed."""


class Channel:
    """One end. A message is a dict of MessagePack values; binary stays binary, lists stay lists."""

    def __init__(self, connection: socket.socket) -> None:
        """Takes the socket over. It must be blocking (a timeout on it bounds sends)."""
        self._socket = connection
        self._buffer = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, message: dict[str, Any]) -> None:
        """Raises PeerGone; BatonError DEADLINE when the peer does not read within the socket's timeout."""
        self.send_encoded(encode(message))

    def send_encoded(self, frame: bytes) -> None:
        try:
            self._socket.sendall(frame)
        except TimeoutError:
            raise BatonError(
                "DEADLINE",
                "An engine's worker does not read its commands.",
                expected=f"a command taken within {self._socket.gettimeout():g} s",
                found="a full socket",
                action="Look at what the worker is doing (stopped?).",
            ) from None
        except OSError:
            raise PeerGone from None

    def receive(self) -> dict[str, Any]:
        """The next message; waits for it. Raises PeerGone."""
        while True:
            message = self.take()
            if message is not None:
                return message
            self.fill()

    def fill(self) -> None:
        """Reads what is there, waiting for at least one byte. Raises PeerGone."""
        try:
            data = self._socket.recv(_CHUNK_BYTES)
        except OSError:
            raise PeerGone from None
        if not data:
            raise PeerGone
        self._buffer += data

    def closed(self) -> bool:
        """Whether the other end is closed already."""
        poller = select.poll()
        poller.register(self._socket, 0)
        return bool(poller.poll(0))

    def take(self) -> dict[str, Any] | None:
        """A message that has arrived completely, or None."""
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        message = msgspec.msgpack.decode(bytes(self._buffer[_LENGTH.size : end]))
        del self._buffer[:end]
        return message


def encode(message: dict[str, Any]) -> bytes:
    """A whole frame, to be sent to several peers."""
    payload = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(payload)) + payload
