"""A run without a controller: its stand-in GPUs, its socket, and the processes that connect to it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from baton.protocol import messages as m
from baton.protocol.frames import FrameSocket

ROOT = Path(__file__).resolve().parents[3]
BUILD = Path(os.environ.get("BATON_TEST_BUILD", ROOT / "build" / "Release"))
HERE = Path(__file__).resolve().parent
SECONDS = float(os.environ.get("BATON_TEST_SECONDS", "120"))
T = TypeVar("T")


class EngineFailed(Exception):  # noqa: N818
    """What an engine said in its `failed` frame."""

    def __init__(self, failure: m.Failure) -> None:
        super().__init__(f"{failure.code}: {failure.message} [{failure.found}]")
        self.failure = failure


@dataclass
class Client:
    """One connected process."""

    hello: m.Hello
    frames: FrameSocket[Any]

    def expect(self, kind: type[T], seconds: float = SECONDS) -> tuple[T, list[int]]:
        message, descriptors = self.frames.receive(seconds)
        if isinstance(message, m.Failed):
            raise EngineFailed(message.failure)
        assert isinstance(message, kind), message
        return message, descriptors


@dataclass
class Run:
    """One test run: socket, stand-in GPUs, children. Everything is gone after `close`."""

    gpus: int = 4
    gpu_bytes: int = 256 << 20
    silence_seconds: float = 120.0
    simulated: bool = True
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="baton-test-")))

    def __post_init__(self) -> None:
        for needed in (BUILD / "libbaton.so", *([BUILD / "standin" / "libcuda.so.1"] if self.simulated else [])):
            assert needed.exists(), f"{needed} is not built: run `npm install` in the checkout"
        self.token = secrets.token_hex(16)
        self.path = self.folder / "s"
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(self.path))
        self.listener.listen(64)
        self.listener.settimeout(0.2)
        self.table = Path("/dev/shm") / f"baton-test-{secrets.token_hex(8)}"
        self.children: list[subprocess.Popen[bytes]] = []
        self.waiting: list[Client] = []
        self.seq = 0

    def environment(self, **more: str) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("BATON_")},
            "PYTHONPATH": str(ROOT / "python" / "src"),
            "BATON_SOCKET": str(self.path),
            "BATON_TOKEN": self.token,
            "BATON_CONTROLLER_PID": str(os.getpid()),
            "BATON_CONTROLLER_START": start_time(os.getpid()),
            "BATON_LIBRARY": str(BUILD / "libbaton.so"),
            "LD_LIBRARY_PATH": str(BUILD / "standin"),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "BATON_STANDIN_TABLE": str(self.table),
            "BATON_STANDIN_DEVICES": str(self.gpus),
            "BATON_STANDIN_BYTES": str(self.gpu_bytes),
            **more,
        }

    def spawn(self, arguments: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, *arguments], env=self.environment(**environment), stdin=subprocess.DEVNULL
        )
        self.children.append(child)
        return child

    def used_bytes(self) -> list[int]:
        """Used memory of every stand-in GPU, as stock nvidia-ml-py reads it."""
        program = (
            "import json, pynvml as n; n.nvmlInit();"
            "print(json.dumps([n.nvmlDeviceGetMemoryInfo(n.nvmlDeviceGetHandleByIndex(i)).used"
            " for i in range(n.nvmlDeviceGetCount())]))"
        )
        found = subprocess.run(
            [sys.executable, "-c", program], env=self.environment(), capture_output=True, timeout=60, check=True
        )
        return json.loads(found.stdout)

    def accept(self, role: str, index: int, engine: int | None = None) -> Client:
        """The client of this role, whichever order they come in."""
        while True:
            for client in self.waiting:
                hello = client.hello
                if (hello.role, hello.index, hello.engine) == (role, index, engine):
                    self.waiting.remove(client)
                    return client
            connection = self._accept()
            frames: FrameSocket[Any] = FrameSocket(connection, m.FromClient)
            hello, _ = frames.receive(SECONDS)
            assert isinstance(hello, m.Hello)
            assert hello.token == self.token
            frames.send(
                m.Welcome(
                    protocol=m.PROTOCOL_VERSION,
                    run="test",
                    simulated=self.simulated,
                    silence_seconds=self.silence_seconds,
                    engines=1,
                    tensor_parallel=1,
                    max_model_length=64,
                    logprob_sequences=0,
                    verify_frozen=0,
                )
            )
            self.waiting.append(Client(hello, frames))

    def _accept(self) -> socket.socket:
        ends = time.monotonic() + SECONDS
        while True:
            try:
                return self.listener.accept()[0]
            except TimeoutError:
                ended = [child.args for child in self.children if child.poll() is not None]
                assert not ended, f"a child ended before it connected: {ended}"
                assert time.monotonic() < ends, "nobody connects"

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
        self.listener.close()
        for path in (self.path, self.table):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.folder)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_time(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
