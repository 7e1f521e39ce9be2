"""A controller for tests: a socket, and frames in both directions, with every message chosen by the test."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from baton.protocol.frames import FrameSocket
from baton.protocol.messages import FromClient, Hello, Welcome


def welcome(**changes: Any) -> Welcome:
    fields: dict[str, Any] = {
        "protocol": 1,
        "run": "test",
        "simulated": True,
        "silence_seconds": 30.0,
        "engines": 1,
        "tensor_parallel": 1,
        "max_model_length": 64,
        "logprob_sequences": 0,
        "verify_frozen": 2,
    }
    return Welcome(**(fields | changes))


class Peer:
    """Listens at once; `accept` takes the one client."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "socket")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self.frames: FrameSocket[Any]
        self.hello: Hello

    def environment(self) -> dict[str, str]:
        return {"BATON_SOCKET": self.path, "BATON_TOKEN": "secret"}

    def hear(self, deadline_seconds: float = 60) -> Hello:
        """Takes the client without answering."""
        self._listener.settimeout(deadline_seconds)
        connection, _ = self._listener.accept()
        self.frames = FrameSocket(connection, FromClient)
        self.hello, _ = self.frames.receive(10)
        return self.hello

    def accept(self, answer: Any = None, deadline_seconds: float = 60) -> Hello:
        self.hear(deadline_seconds)
        self.frames.send(answer or welcome())
        return self.hello

    def receive(self, kind: type, deadline_seconds: float = 60) -> Any:
        """The next message, which must be of this kind and carry no descriptors."""
        message, descriptors = self.frames.receive(deadline_seconds)
        assert isinstance(message, kind), message
        assert descriptors == []
        return message

    def send(self, message: Any, descriptors: tuple[int, ...] = ()) -> None:
        self.frames.send(message, descriptors)

    def close(self) -> None:
        if hasattr(self, "frames"):
            self.frames.close()
        self._listener.close()
        Path(self.path).unlink(missing_ok=True)


def memfd(bytes: int) -> int:
    fd = os.memfd_create("arena", os.MFD_CLOEXEC)
    os.ftruncate(fd, bytes)
    return fd
