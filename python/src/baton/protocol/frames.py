"""Frames over a Unix socket: an 8-byte header, a MessagePack map, and file descriptors beside it.

The header is little-endian: u32 payload bytes, u8 version, u8 descriptor count, u16 zero. The descriptors of a
frame are sent with its first byte. The kernel may hand them over together with the last bytes of the frame
before, never later than with the frame's own first byte; so they are queued as they come and taken, by the
count in the header, when the frame is complete.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from baton.errors import BatonError
from baton.protocol.messages import PROTOCOL_VERSION, FromClient, FromController

HEADER = struct.Struct("<IBBH")
_HEADER_BYTES = HEADER.size
#: SCM_MAX_FD of Linux; one more is EINVAL.
MAX_DESCRIPTORS = 253
#: Larger than any honest frame; a header that says more is not ours.
MAX_PAYLOAD_BYTES = 1 << 30

# Missing from Python's socket module; without it a child started at the wrong moment inherits the descriptor.
_MSG_CMSG_CLOEXEC = 0x40000000
# Plain numbers: `flags & socket.MSG_CTRUNC` makes a member of an enum, in Python code, for every frame.
_MSG_CTRUNC = int(socket.MSG_CTRUNC)
_MSG_NOSIGNAL = int(socket.MSG_NOSIGNAL)
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
_CHUNK_BYTES = 1 << 16

_Incoming = TypeVar("_Incoming")

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {
    FromClient: msgspec.msgpack.Decoder(FromClient),
    FromController: msgspec.msgpack.Decoder(FromController),
}


class ConnectionClosed(BatonError):  # noqa: N818 - it is no error until somebody still waits
    """The other side closed the connection between two frames."""

    def __init__(self, message: str = "the connection to the controller is closed") -> None:
        super().__init__(
            "CONNECTION_LOST",
            message,
            expected="an open connection",
            found="end of stream",
            action="Look at the controller's own error; it ended the run or died.",
        )


def pack_header(payload_bytes: int, descriptors: int) -> bytes:
    """The 8 bytes in front of a payload."""
    return HEADER.pack(payload_bytes, PROTOCOL_VERSION, descriptors, 0)


def unpack_header(header: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Payload bytes and descriptor count. Raises PROTOCOL_ERROR when this is not one of our headers."""
    payload_bytes, version, descriptors, zero = HEADER.unpack_from(header)
    if version != PROTOCOL_VERSION:
        raise _protocol_error(
            "a frame has another protocol version", f"version {PROTOCOL_VERSION}", f"version {version}"
        )
    if zero or payload_bytes > MAX_PAYLOAD_BYTES or descriptors > MAX_DESCRIPTORS:
        raise _protocol_error(
            "the header of a frame makes no sense",
            f"at most {MAX_PAYLOAD_BYTES} bytes, at most {MAX_DESCRIPTORS} descriptors, then two zero bytes",
            f"{payload_bytes} bytes, {descriptors} descriptors",
        )
    return payload_bytes, descriptors


def encode(message: FromClient | FromController) -> bytes:
    """The payload of a frame. Not checked here; whoever receives it checks every field."""
    return _encoder.encode(message)


def decode(payload: bytes | bytearray | memoryview, incoming: Any) -> Any:
    """A message of the union `incoming`. Raises PROTOCOL_ERROR that names the message and the field."""
    try:
        return _decoders[incoming].decode(payload)
    except msgspec.DecodeError as error:  # ValidationError is one
        raise _not_valid(payload, error) from None


def _describe(payload: bytes | bytearray | memoryview) -> str:
    try:
        kind = msgspec.msgpack.decode(payload)["type"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return "a frame without a readable type"
    return f'message "{kind}"'


class FrameSocket(Generic[_Incoming]):
    """A connected Unix socket that speaks frames. Blocking, for one thread that receives and one that sends.

    Eight ranks that wait for one frame share the cores that the controller needs too, so an ordinary frame costs one
    call to send, and two to wait for and read.
    """

    def __init__(self, connection: socket.socket, incoming: Any) -> None:
        """Takes the socket over. `incoming` is the union of what arrives, `FromController` in a client."""
        connection.setblocking(False)  # the waiting is done by poll, whose deadline no signal prolongs
        self._socket = connection
        self._decoder = _decoders[incoming]
        self._wait_readable = _waiter(connection, select.POLLIN)
        self._wait_writable = _waiter(connection, select.POLLOUT)
        self._use_buffer(bytearray(_CHUNK_BYTES))
        self._start = 0  # first byte that is not consumed
        self._end = 0  # end of what was received
        self._descriptors: deque[int] = deque()

    @classmethod
    def connect(cls, path: str, deadline: float, incoming: Any = FromController) -> FrameSocket[Any]:
        """Connects to the socket at `path`, waiting at most `deadline` seconds."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(deadline)
            connection.connect(path)
        except OSError as error:
            connection.close()
            raise BatonError(
                "CANNOT_CONNECT",
                f"the controller's socket {path} does not answer: {error.strerror or error}",
                expected=f"a connection within {deadline:g} s",
                found=type(error).__name__,
                action="Start this process by `baton run`, and check that the run is still going on.",
            ) from None
        return cls(connection, incoming)

    def fileno(self) -> int:
        """For selectors; a frame may be complete in the buffer although the socket is not readable."""
        return self._socket.fileno()

    @property
    def buffered(self) -> bool:
        """Bytes of a frame have been read already: `select` on the descriptor need not tell of it."""
        return self._end > self._start

    def close(self) -> None:
        """Closes the socket and every descriptor that was received and not taken."""
        # The number of the socket may soon be that of another file.
        self._wait_readable = self._wait_writable = _closed
        while self._descriptors:
            os.close(self._descriptors.popleft())
        self._socket.close()

    def send(
        self, message: FromClient | FromController, descriptors: Sequence[int] = (), deadline: float = 60.0
    ) -> None:
        """Sends one frame. The descriptors stay the caller's; they may be closed when this returns."""
        payload = _encoder.encode(message)
        header = HEADER.pack(len(payload), PROTOCOL_VERSION, len(descriptors), 0)
        try:
            if descriptors or len(payload) > _CHUNK_BYTES:
                self._send_large(header, payload, descriptors, deadline)
                return
            # One call for a frame of ordinary size: the receiver wakes once and finds it whole.
            frame = header + payload
            try:
                sent = self._socket.send(frame, _MSG_NOSIGNAL)
            except BlockingIOError:
                sent = 0
            if sent < len(frame):
                self._send_rest(memoryview(frame)[sent:], time.monotonic() + deadline)
        except TimeoutError:
            raise _deadline(f"sending {type(message).__name__}", deadline) from None
        except (BrokenPipeError, ConnectionResetError):
            raise ConnectionClosed(f"the connection was closed while sending {type(message).__name__}") from None

    def _send_large(self, header: bytes, payload: bytes, descriptors: Sequence[int], deadline: float) -> None:
        """A frame with descriptors, or one that is not worth a copy."""
        if len(descriptors) > MAX_DESCRIPTORS or len(payload) > MAX_PAYLOAD_BYTES:
            unpack_header(header)  # raises
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        ends = time.monotonic() + deadline
        sent = 0
        while sent == 0:
            try:
                sent = self._socket.sendmsg((header, payload), ancillary, _MSG_NOSIGNAL)
            except BlockingIOError:
                self._until_writable(ends)
        if sent < len(header):
            self._send_rest(memoryview(header)[sent:], ends)
            sent = len(header)
        if sent < len(header) + len(payload):
            self._send_rest(memoryview(payload)[sent - len(header) :], ends)

    def _send_rest(self, rest: memoryview, ends: float) -> None:
        while rest:
            self._until_writable(ends)
            try:
                rest = rest[self._socket.send(rest, _MSG_NOSIGNAL) :]
            except BlockingIOError:
                continue

    def _until_writable(self, ends: float) -> None:
        """Raises TimeoutError."""
        left = ends - time.monotonic()
        if left <= 0 or not self._wait_writable(left * 1000):
            raise TimeoutError

    def receive(self, deadline: float) -> tuple[_Incoming, list[int]]:
        """The next message and its descriptors, which are the caller's to close (and close-on-exec).

        Raises DEADLINE when it is not complete within `deadline` seconds (what has arrived is kept, so it may be
        called again), CONNECTION_LOST at end of stream, PROTOCOL_ERROR for anything that is not a valid frame.
        """
        ends = time.monotonic() + deadline
        left = deadline
        while True:
            if self._end - self._start >= _HEADER_BYTES:
                frame = self._take()
                if frame is not None:
                    return frame
            if left <= 0 < deadline or not self._wait_readable(max(left, 0.0) * 1000):
                raise _deadline("waiting for the controller", deadline)
            self._fill()
            left = ends - time.monotonic()

    def _take(self) -> tuple[_Incoming, list[int]] | None:
        payload_bytes, version, count, zero = HEADER.unpack_from(self._buffer, self._start)
        if version != PROTOCOL_VERSION or zero or payload_bytes > MAX_PAYLOAD_BYTES or count > MAX_DESCRIPTORS:
            unpack_header(self._view[self._start :])  # raises
        begin = self._start + _HEADER_BYTES
        end = begin + payload_bytes
        if self._end < end:
            self._reserve(_HEADER_BYTES + payload_bytes)
            return None
        self._start = end
        payload = self._view[begin:end]
        try:
            message = self._decoder.decode(payload)
        except msgspec.DecodeError as error:  # ValidationError is one
            raise _not_valid(payload, error) from None
        empty = end == self._end
        # Descriptors of the frame after this one may be queued already, but only with a byte of that frame.
        if len(self._descriptors) < count or (empty and len(self._descriptors) > count):
            raise _protocol_error(
                f"{type(message).__name__} does not carry the descriptors that its header says",
                f"{count} descriptors",
                f"{len(self._descriptors)}",
            )
        if empty:
            self._start = self._end = 0
            if len(self._buffer) > 16 * _CHUNK_BYTES:
                self._use_buffer(bytearray(_CHUNK_BYTES))  # one large frame must not cost memory for ever
        return message, [self._descriptors.popleft() for _ in range(count)] if count else []

    def _use_buffer(self, buffer: bytearray) -> None:
        self._buffer = buffer
        self._view = memoryview(buffer)

    def _reserve(self, frame_bytes: int) -> None:
        """Makes room for a frame of this size at the start of the buffer."""
        if self._start + frame_bytes <= len(self._buffer):
            return
        received = bytes(self._view[self._start : self._end])
        if frame_bytes > len(self._buffer):
            self._use_buffer(bytearray(frame_bytes))
        self._view[: len(received)] = received
        self._start, self._end = 0, len(received)

    def _fill(self) -> None:
        """Takes what has arrived, if anything has."""
        if self._end == len(self._buffer):
            self._reserve(min(self._end - self._start + _CHUNK_BYTES, MAX_PAYLOAD_BYTES + _HEADER_BYTES))
        room = self._view[self._end :] if self._end else self._view
        try:
            received, ancillary, flags, _ = self._socket.recvmsg_into((room,), _ANCILLARY_BYTES, _MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except ConnectionResetError:
            raise ConnectionClosed("the connection was reset") from None
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                self._descriptors.extend(numbers)
        if flags & _MSG_CTRUNC:
            raise _protocol_error(
                "descriptors were lost on the way",
                "every descriptor of a frame",
                "a truncated control message (too many open files?)",
                action="Raise the limit of open files (ulimit -n) for this process.",
            )
        if received == 0:
            if self._start != self._end or self._descriptors:
                raise ConnectionClosed("the connection ended in the middle of a frame")
            raise ConnectionClosed()
        self._end += received


def _waiter(connection: socket.socket, events: int) -> Callable[[float], object]:
    """Waits at most so many milliseconds; gives something false when they have passed."""
    poll = select.poll()
    poll.register(connection, events)
    return poll.poll


def _closed(_milliseconds: float) -> object:
    raise ConnectionClosed("this process has closed the connection")


def _not_valid(payload: bytes | bytearray | memoryview, error: msgspec.DecodeError) -> BatonError:
    return _protocol_error(f"{_describe(payload)} is not valid", "a message of the protocol", str(error))


def _deadline(doing: str, seconds: float) -> BatonError:
    return BatonError(
        "DEADLINE",
        f"{doing} took longer than {seconds:g} s",
        expected=f"an answer within {seconds:g} s",
        found="none",
        action="Look at what the other process is doing; a larger deadline can be set in the recipe.",
    )


def _protocol_error(message: str, expected: str, found: str, action: str | None = None) -> BatonError:
    return BatonError(
        "PROTOCOL_ERROR",
        message,
        expected,
        found,
        action or "Use the same version of Baton in every process of the run.",
    )
