"""The controller's part of a sleep and of generation, one step at a time, so that each can be timed alone.

It speaks the product's own frames with real engines, workers and ranks, over a socket of its own; of a sync it is
`sources`. A whole handoff is measured with the real controller (`handoff_rank`).
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypeVar

from baton.bench.gpu.part import Job, simulated
from baton.errors import FIELDS, BatonError
from baton.protocol import arrays
from baton.protocol import messages as m
from baton.protocol.frames import FrameSocket

T = TypeVar("T")
#: Of one answer, and of the start of an engine.
ANSWER_SECONDS, START_SECONDS = 120.0, 480.0
#: Longer than any part may take.
SILENCE_SECONDS = 3600.0
MAX_LENGTH, MAX_SEQUENCES = 1024, 64
PROMPTS = [[(7 * i + 13 * j + 5) % 400 + 10 for j in range(16)] for i in range(8)]


class Client:
    """One connected process."""

    def __init__(self, hello: m.Hello, frames: FrameSocket[Any]) -> None:
        self.hello, self.frames = hello, frames

    def receive(self, seconds: float = ANSWER_SECONDS) -> tuple[Any, list[int]]:
        """The next frame that is no sign of life. Raises BatonError with what the process says when it fails."""
        ends = time.monotonic() + seconds
        while True:
            message, descriptors = self.frames.receive(max(0.001, ends - time.monotonic()))
            if isinstance(message, m.Failed):
                raise BatonError.from_wire({name: getattr(message.failure, name) for name in FIELDS})
            if not isinstance(message, (m.Progress, m.Pong)):
                return message, descriptors

    def expect(self, kind: type[T], seconds: float = ANSWER_SECONDS) -> tuple[T, list[int]]:
        message, descriptors = self.receive(seconds)
        if not isinstance(message, kind):
            raise BatonError(
                "PROTOCOL_ERROR",
                f"A {self.hello.role} answered something else.",
                expected=kind.__name__,
                found=type(message).__name__,
                action="Please report this.",
            )
        return message, descriptors


class Desk:
    """Socket and processes; gone after the `with` block."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.folder = Path(tempfile.mkdtemp(prefix="baton-bench-"))
        self.token = secrets.token_hex(16)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(self.folder / "s"))
        self.listener.listen(16)
        self.children: list[subprocess.Popen[bytes]] = []
        self.waiting: list[Client] = []
        self.seq = 0
        self.epoch = 0
        self.engines: list[Client] = []
        #: By GPU: engine e has GPUs e * TP to e * TP + TP - 1.
        self.workers: list[Client] = []
        self.ready: m.Ready

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            child.kill()
            child.wait()
        self.listener.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq

    # ---- processes --------------------------------------------------------------------------------------

    def spawn(self, module: str, **variables: str) -> None:
        environment = {
            **os.environ,
            "BATON_SOCKET": str(self.folder / "s"),
            "BATON_TOKEN": self.token,
            "BATON_CONTROLLER_PID": str(os.getpid()),
            "BATON_CONTROLLER_START": Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19],
            **variables,
        }
        self.children.append(
            subprocess.Popen([sys.executable, "-m", module], env=environment, stdin=subprocess.DEVNULL)
        )

    def accept(self, role: str, index: int, seconds: float, *, engine: int | None = None) -> Client:
        """The client of this role, whichever order they come in; `engine`: of a worker."""
        ends = time.monotonic() + seconds
        while True:
            for client in self.waiting:
                hello = client.hello
                if (hello.role, hello.index, hello.engine) == (role, index, engine):
                    self.waiting.remove(client)
                    return client
            if any(child.poll() not in (None, 0) for child in self.children) or time.monotonic() > ends:
                raise BatonError(
                    "BENCH_PROCESS_FAILED",
                    f"{role} {index} did not connect.",
                    expected=f"a connection within {seconds:g} s",
                    found=", ".join(f"{child.args}: {child.poll()}" for child in self.children),
                    action="Look at the log of this part.",
                )
            if select.select([self.listener], [], [], 0.2)[0]:
                self.waiting.append(self._welcome(self.listener.accept()[0]))

    def _welcome(self, connection: socket.socket) -> Client:
        frames: FrameSocket[Any] = FrameSocket(connection, m.FromClient)
        hello, _ = frames.receive(10.0)
        if not isinstance(hello, m.Hello) or hello.token != self.token:
            raise BatonError(
                "PROTOCOL_ERROR",
                "A stranger connected.",
                expected="a hello with the token of this part",
                found=type(hello).__name__,
                action="Run the bench alone.",
            )
        frames.send(
            m.Welcome(
                protocol=m.PROTOCOL_VERSION,
                run="bench",
                simulated=simulated(),
                # No signs of life are sent from here; the watchdog of each client looks at this process itself.
                silence_seconds=SILENCE_SECONDS,
                engines=self.job.engines,
                tensor_parallel=self.job.tp,
                max_model_length=MAX_LENGTH if not simulated() else 64,
                logprob_sequences=0,
                verify_frozen=0,
            )
        )
        return Client(hello, frames)

    def start_engines(self) -> None:
        """vLLM on a GPU, the small engine on a stand-in; asleep afterwards."""
        job = self.job
        for engine in range(job.engines):
            config: dict[str, Any] = {
                "kind": "small" if simulated() else "vllm",
                "index": engine,
                "model": job.model,
                "tensor_parallel": job.tp,
                "devices": list(range(engine * job.tp, (engine + 1) * job.tp)),
                "dtype": "bfloat16",
                "max_model_length": MAX_LENGTH if not simulated() else 64,
                "max_sequences": MAX_SEQUENCES if not simulated() else 16,
                "cache_bytes": job.cache_bytes or None,
                "options": {} if simulated() else engine_options(job),
            }
            self.spawn("baton.engines", BATON_ENGINE=json.dumps(config), BATON_STANDIN_ROLE="engine")
        for engine in range(job.engines):
            self.engines.append(self.accept("engine", engine, START_SECONDS))
            self.workers += [self.accept("worker", index, START_SECONDS, engine=engine) for index in range(job.tp)]
        for client in self.engines:
            self.ready, _ = client.expect(m.Ready, START_SECONDS)

    # ---- steps of a handoff, by all engines at once -----------------------------------------------------

    def wake(self, tag: m.WakeTag) -> None:
        seq = self.next_seq()
        for engine in self.engines:
            engine.frames.send(m.Wake(seq=seq, tags=[tag]))
        for engine in self.engines:
            engine.expect(m.Awake)

    def sleep(self) -> None:
        seq = self.next_seq()
        for engine in self.engines:
            engine.frames.send(m.Sleep(seq=seq, level=2))
        for engine in self.engines:
            engine.expect(m.Asleep)

    def generate(self, max_tokens: int) -> list[list[int]]:
        """The tokens of each engine, of all prompts one after another; greedy."""
        request = self.next_seq()
        for engine in self.engines:
            engine.frames.send(
                m.Generate(
                    request=request,
                    epoch=self.epoch,
                    tokens=arrays.binary_u32([token for prompt in PROMPTS for token in prompt]),
                    lengths=arrays.binary_u32([len(prompt) for prompt in PROMPTS]),
                    sampling=m.Sampling(
                        n=1,
                        temperature=0.0,
                        top_k=0,
                        top_p=1.0,
                        min_p=0.0,
                        max_tokens=max_tokens,
                        stop_token_ids=[],
                        seed=1,
                    ),
                    samples=arrays.binary_u32([1] * len(PROMPTS)),
                    streams=arrays.binary_u32(list(range(len(PROMPTS)))),
                )
            )
        answers = [engine.expect(m.Generated)[0] for engine in self.engines]
        return [arrays.u32s(answer.tokens, "tokens").tolist() for answer in answers]

    def shutdown(self) -> None:
        for engine in self.engines:
            engine.frames.send(m.Shutdown(failure=None))
        for child in self.children[: len(self.engines)]:
            child.wait(15)


def engine_options(job: Job) -> dict[str, Any]:
    """Of vLLM, in both spellings the same: how it captures CUDA graphs."""
    by_name: dict[str, dict[str, Any]] = {
        "vllm": {},
        "decode": {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}},
        "none": {"enforce_eager": True},
    }
    return by_name[job.graphs]
