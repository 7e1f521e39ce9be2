"""The small engine as the engine process sees it: starts the workers, gives them commands, watches them."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from baton.engines import model_config
from baton.engines.adapter import EngineAdapter, EngineConfig, EngineInfo, Request, Sample, Sampling, WakeTag
from baton.engines.requests import check_requests
from baton.engines.small import wire
from baton.engines.small.channel import Channel, PeerGone, encode
from baton.engines.small.shard import Shard
from baton.engines.workers import state_of
from baton.errors import BatonError

#: How long workers that report a failure are given to turn out to be victims of another one's death.
DEATH_GRACE_SECONDS = 0.3
#: Worker 0 takes the others along, and they may be seen to end a moment before it.
FIRST_SECONDS = 0.5
#: Longest a collective of the workers may take; a dead peer is noticed at once, a stopped one only by this.
COLLECTIVE_SECONDS = 600.0
#: A worker reads its commands at once, unless it is stopped and its socket full.
SEND_SECONDS = 10.0
#: `on_progress` is called at least this often, so that the caller can stop a generation.
TICK_SECONDS = 0.1


class _Worker:
    """One worker's channel. `pid` is known when the worker has started."""

    def __init__(self, rank: int, ours: socket.socket) -> None:
        self.rank = rank
        ours.settimeout(SEND_SECONDS)
        self.channel = Channel(ours)
        self.pid: int | None = None
        self.answered = False
        self.answer: Any = None


def _start(count: int) -> tuple[subprocess.Popen[bytes], list[_Worker]]:
    """The process that is worker 0 and forks the others, and the channels to all of them."""
    pairs = [socket.socketpair() for _ in range(count)]
    theirs = [pair[1].fileno() for pair in pairs]
    process = subprocess.Popen(
        [sys.executable, "-m", "baton.engines.small.worker", str(os.getpid()), *map(str, theirs)],
        pass_fds=theirs,
        stdin=subprocess.DEVNULL,
        # Threads that exist before the fork would be lost by it; OpenBLAS starts some on import.
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    for _, end in pairs:
        end.close()
    return process, [_Worker(rank, ours) for rank, (ours, _) in enumerate(pairs)]


class SmallEngine(EngineAdapter):
    """See `EngineAdapter`. Errors of a worker arrive as they are; a lost worker is ENGINE_WORKER_DIED."""

    def __init__(self) -> None:
        self._workers: list[_Worker] = []
        self._first: subprocess.Popen[bytes] | None = None
        self._selector = selectors.DefaultSelector()
        self._folder: str | None = None
        self._config: EngineConfig | None = None
        self._vocabulary = 0

    def start(self, config: EngineConfig, deadline: float) -> EngineInfo:
        ends = time.monotonic() + deadline
        model = model_config.read(config.model)
        for rank in range(config.tensor_parallel):
            Shard.of(model, rank, config.tensor_parallel)
        self._config = config
        # Private: whoever can write the store could join the group. Beside the run's socket, so that it goes with the
        # run whatever becomes of this process.
        beside = os.path.dirname(os.environ.get("BATON_SOCKET", "")) or None
        self._folder = tempfile.mkdtemp(prefix="engine-", dir=beside)
        self._first, self._workers = _start(config.tensor_parallel)
        for worker in self._workers:
            self._selector.register(worker.channel, selectors.EVENT_READ, worker)
            setup = {
                "rank": worker.rank,
                "size": config.tensor_parallel,
                "engine": config.index,
                "device": config.devices[worker.rank],
                "dtype": config.dtype,
                "sync": config.sync,
                "model": asdict(model),
                "store": os.path.join(self._folder, "store"),
                "collective_deadline": COLLECTIVE_SECONDS,
                "max_model_length": config.max_model_length,
                "max_sequences": config.max_sequences,
                "cache_bytes": config.cache_bytes,
            }
            self._send(worker, encode(setup))
        infos = self._gather(ends, "starting")
        for worker, info in zip(self._workers, infos, strict=True):
            worker.pid = info["pid"]
        self.collective("record_own", deadline=ends - time.monotonic())
        self._vocabulary = infos[0]["vocabulary_size"]
        return EngineInfo.of(config, infos)

    def sleep(self, level: int, deadline: float) -> list[int | None]:
        return self.collective("sleep", level, deadline=deadline)

    def wake(self, tags: Sequence[WakeTag], deadline: float) -> None:
        self.collective("wake", list(tags), deadline=deadline)

    def collective(self, method: str, *args: Any, deadline: float) -> list[Any]:
        self._command(method, args)
        return self._gather(time.monotonic() + deadline, method)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_progress: Callable[[int, int], None]
    ) -> list[list[Sample]]:
        assert self._config is not None
        check_requests(requests, self._config.max_model_length, self._vocabulary)
        self._command("generate", (wire.pack_requests(requests, sampling),))
        return wire.unpack_samples(self._gather(None, "generate", on_progress)[0])

    def worker_pids(self) -> list[int]:
        first = [] if self._first is None else [self._first.pid]
        return first + [worker.pid for worker in self._workers[1:] if worker.pid is not None]

    def close(self, deadline: float) -> None:
        """Closes the channels, on which the workers end; kills those that have not after `deadline`."""
        for worker in self._workers:
            worker.channel.close()
        if self._first is not None:
            # The kernel ends the others with the first.
            try:
                self._first.wait(deadline)
            except subprocess.TimeoutExpired:
                self._first.kill()
                self._first.wait()
        self._selector.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _command(self, method: str, arguments: Sequence[Any]) -> None:
        frame = encode({"method": method, "arguments": list(arguments)})
        for worker in self._workers:
            self._send(worker, frame)

    def _send(self, worker: _Worker, frame: bytes) -> None:
        try:
            worker.channel.send_encoded(frame)
        except PeerGone:
            raise self._died(worker) from None

    def _gather(
        self, ends: float | None, doing: str, on_progress: Callable[[int, int], None] | None = None
    ) -> list[Any]:
        """One answer of every worker, by rank."""
        progress = (0, 0)
        for worker in self._workers:
            worker.answered = False
        while not all(worker.answered for worker in self._workers):
            left = TICK_SECONDS if ends is None else ends - time.monotonic()
            if left <= 0:
                raise self._late(doing)
            for key, _ in self._selector.select(left):
                worker: _Worker = key.data
                for message in self._read(worker):
                    if "finished" in message:
                        progress = (message["finished"], message["tokens"])
                    elif "failure" in message:
                        raise self._blame(BatonError.from_wire(message["failure"]))
                    else:
                        worker.answered, worker.answer = True, message["answer"]
            if on_progress is not None:
                on_progress(*progress)
        return [worker.answer for worker in self._workers]

    def _read(self, worker: _Worker) -> list[dict[str, Any]]:
        try:
            worker.channel.fill()
        except PeerGone:
            raise self._died(worker) from None
        return list(iter(worker.channel.take, None))

    def _blame(self, failure: BatonError) -> BatonError:
        """A worker's failure, unless another worker died: then this one only lost its peer."""
        ends = time.monotonic() + DEATH_GRACE_SECONDS
        while failure.code == "WORKER_GROUP_BROKEN" and time.monotonic() < ends:
            for key, _ in self._selector.select(0.01):
                worker: _Worker = key.data
                try:
                    worker.channel.fill()
                except PeerGone:
                    return self._died(worker)
        return failure

    def _died(self, worker: _Worker) -> BatonError:
        assert self._first is not None
        status: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._first.wait(FIRST_SECONDS if worker.rank else DEATH_GRACE_SECONDS)
        if status is not None and status >= 0 and worker.rank:
            # The first ends by itself when it fails: for a reason of its own, or because it has lost this worker.
            reason = self._last_failure(self._workers[0])
            if reason is not None and reason.code != "WORKER_GROUP_BROKEN":
                return reason
            status = None
        if status is not None:
            # The kernel ends the others with the first, so the first is the one to name.
            worker = self._workers[0]
            worker.pid = self._first.pid
        if status is None:
            how = "its channel is closed: killed, or crashed"
        elif status < 0:
            how = f"killed by {signal.Signals(-status).name}"
        else:
            how = f"exit status {status}"
        return BatonError(
            "ENGINE_WORKER_DIED",
            f"Worker {worker.rank} of engine {self._config.index if self._config else '?'} "
            f"(process {worker.pid}) ended unexpectedly.",
            expected="all workers of the engine running",
            found=how,
            action="Read the output of that process; if it was killed, see whether the machine ran out of memory.",
        )

    def _last_failure(self, worker: _Worker) -> BatonError | None:
        """What a worker that has ended had to say."""
        with contextlib.suppress(PeerGone):
            worker.channel.fill()
        failures = [message["failure"] for message in iter(worker.channel.take, None) if "failure" in message]
        return BatonError.from_wire(failures[-1]) if failures else None

    def _late(self, doing: str) -> BatonError:
        silent = [worker for worker in self._workers if not worker.answered]
        return BatonError(
            "DEADLINE",
            f"The workers of engine {self._config.index if self._config else '?'} did not finish {doing!r} in time.",
            expected="an answer from every worker",
            found="none from " + ", ".join(f"worker {w.rank} (process {w.pid}, {state_of(w.pid)})" for w in silent),
            action="Look at these processes; a larger deadline can be set in the recipe.",
        )
