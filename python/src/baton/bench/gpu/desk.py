"""The controller's part of a sync and of a sleep, one step at a time, so that each can be timed alone.

It speaks the product's own frames with real engines, workers and ranks, over a socket of its own. A whole handoff is
measured with the real controller (`handoff_rank`).
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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class SyncTimes:
    """One sync as the caller sees it, and as the worker says; seconds and bytes."""

    seconds: float
    answer: m.Synced
    segments: int


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
        self.engine: Client
        self.worker: Client
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

    def accept(self, role: str, index: int, seconds: float) -> Client:
        """The client of this role, whichever order they come in."""
        ends = time.monotonic() + seconds
        while True:
            for client in self.waiting:
                if (client.hello.role, client.hello.index) == (role, index):
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
                engines=1,
                tensor_parallel=1,
                max_model_length=MAX_LENGTH if not simulated() else 64,
                logprob_sequences=0,
                verify_frozen=0,
            )
        )
        return Client(hello, frames)

    def start_engine(self) -> None:
        """vLLM on a GPU, the small engine on a stand-in; asleep afterwards."""
        config: dict[str, Any] = {
            "kind": "small" if simulated() else "vllm",
            "index": 0,
            "model": self.job.model,
            "tensor_parallel": 1,
            "devices": [0],
            "dtype": "bfloat16",
            "max_model_length": MAX_LENGTH if not simulated() else 64,
            "max_sequences": MAX_SEQUENCES if not simulated() else 16,
            "cache_bytes": self.job.cache_bytes or None,
            "options": {} if simulated() else engine_options(self.job),
        }
        self.spawn("baton.engines", BATON_ENGINE=json.dumps(config), BATON_STANDIN_ROLE="engine")
        self.engine = self.accept("engine", 0, START_SECONDS)
        self.worker = self.accept("worker", 0, START_SECONDS)
        self.ready, _ = self.engine.expect(m.Ready, START_SECONDS)

    # ---- steps of a handoff -----------------------------------------------------------------------------

    def wake(self, tag: m.WakeTag) -> None:
        self.engine.frames.send(m.Wake(seq=self.next_seq(), tags=[tag]))
        self.engine.expect(m.Awake)

    def sleep(self) -> None:
        self.engine.frames.send(m.Sleep(seq=self.next_seq(), level=2))
        self.engine.expect(m.Asleep)

    def generate(self, max_tokens: int) -> int:
        """How many tokens came back; greedy."""
        self.engine.frames.send(
            m.Generate(
                request=self.next_seq(),
                epoch=self.epoch,
                tokens=arrays.binary_u32([token for prompt in PROMPTS for token in prompt]),
                lengths=arrays.binary_u32([len(prompt) for prompt in PROMPTS]),
                sampling=m.Sampling(n=1, temperature=0.0, top_p=1.0, max_tokens=max_tokens, stop_token_ids=[], seed=1),
                samples=arrays.binary_u32([1] * len(PROMPTS)),
                streams=arrays.binary_u32(list(range(len(PROMPTS)))),
            )
        )
        answer, _ = self.engine.expect(m.Generated)
        return int(arrays.u32s(answer.lengths, "lengths").sum())

    def shutdown(self) -> None:
        self.engine.frames.send(m.Shutdown(failure=None))
        for child in self.children[:1]:
            child.wait(15)


class Sources:
    """Processes that hold the model's tensors as a trainer's ranks do, all of them on GPU 0."""

    def __init__(self, desk: Desk, stage: int, world: int) -> None:
        self.desk, self.world = desk, world
        first = len(desk.children)
        for rank in range(world):
            spec = {"model": desk.job.model, "stage": stage, "rank": rank, "world": world}
            desk.spawn("baton.bench.gpu.weights_rank", BATON_BENCH_RANK=json.dumps(spec), BATON_STANDIN_ROLE="rank")
        self.children = desk.children[first:]
        self.ranks = [desk.accept("rank", rank, ANSWER_SECONDS) for rank in range(world)]
        self.manifests = [rank.expect(m.Manifest)[0] for rank in self.ranks]
        seq = desk.next_seq()
        for rank, manifest in enumerate(self.manifests):
            desk.worker.frames.send(
                m.RankManifest(seq=seq, rank=rank, gpu=0, last=rank == world - 1, manifest=manifest)
            )
        desk.engine.frames.send(m.Plan(seq=seq))
        self.plan = _answer(desk, m.Planned)

    def sync(self, *, checksums: bool, compare: bool = False) -> SyncTimes:
        """Ranks export, the worker takes the weights; the engine's weights must be awake."""
        desk = self.desk
        began = time.perf_counter()
        desk.epoch += 1
        sums: dict[int, Any] = {}
        frames: list[tuple[m.Sources, list[int]]] = []
        for source in self.plan.sources:
            rank = self.ranks[source.rank]
            rank.frames.send(m.ExportSegments(seq=desk.next_seq(), segments=source.segments, checksums=checksums))
        for number, source in enumerate(self.plan.sources):
            last_source = number == len(self.plan.sources) - 1
            while True:
                answer, descriptors = self.ranks[source.rank].expect(m.Exported)
                frames.append(
                    (
                        m.Sources(
                            seq=0,
                            epoch=desk.epoch,
                            rank=source.rank,
                            segment_bytes=self.manifests[source.rank].segment_bytes,
                            segments=answer.segments,
                            compare=compare,
                            checksums=checksums,
                            last=last_source and answer.last,
                        ),
                        descriptors,
                    )
                )
                if answer.last:
                    sums[source.rank] = answer.checksums
                    break
        seq = desk.next_seq()
        segments = 0
        for frame, descriptors in frames:
            frame.seq = seq
            segments += len(descriptors)
            desk.worker.frames.send(frame, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
        desk.engine.frames.send(m.Sync(seq=seq, epoch=desk.epoch, compare=compare))
        answer = _answer(desk, m.Synced)
        seconds = time.perf_counter() - began
        if checksums:
            self._check(sums, answer)
        return SyncTimes(seconds, answer, segments)

    def _check(self, sums: dict[int, Any], answer: m.Synced) -> None:
        """The worker holds every tensor a whole number of times; random weights make equal sums no accident."""
        import numpy as np

        whole: Any = sum(arrays.u64s(found, "checksums") for found in sums.values())
        sizes = np.array([int(np.prod(shape)) for shape in self.manifests[0].shapes], dtype=np.uint64)
        times = arrays.u64s(self.plan.covered_elements, "coveredElements") // sizes
        held = arrays.u64s(answer.checksums, "checksums")
        if not whole.any() or not np.array_equal(held, times * whole):
            raise BatonError(
                "WEIGHTS_DIFFER",
                "The engine does not hold what the ranks hold.",
                expected="equal checksums of every tensor",
                found=f"{int((held != times * whole).sum())} of {len(held)} differ",
                action="Please report this.",
            )

    def close(self) -> None:
        for child in self.children:
            self.desk.children.remove(child)
            child.kill()
            child.wait()


def _answer(desk: Desk, kind: type[T]) -> T:
    """The worker's frame, or the engine's failure when that comes instead."""
    ends = time.monotonic() + ANSWER_SECONDS
    while True:
        ready = select.select([desk.worker.frames, desk.engine.frames], [], [], 1.0)[0]
        if desk.worker.frames in ready:
            return desk.worker.expect(kind)[0]
        if desk.engine.frames in ready:
            desk.engine.receive(1.0)  # nothing but a failure can come here, and it raises
        if time.monotonic() > ends:
            raise BatonError(
                "DEADLINE",
                "A worker did not answer.",
                expected=f"{kind.__name__} within {ANSWER_SECONDS:g} s",
                found="nothing",
                action="Look at the log of this part.",
            )


def engine_options(job: Job) -> dict[str, Any]:
    """Of vLLM, in both spellings the same: how it captures CUDA graphs."""
    by_name: dict[str, dict[str, Any]] = {
        "vllm": {},
        "decode": {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}},
        "none": {"enforce_eager": True},
    }
    return by_name[job.graphs]
