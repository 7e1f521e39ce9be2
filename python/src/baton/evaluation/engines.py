"""The processes of all engines: started, given their part of the problems, listened to, and ended."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from baton.errors import BatonError
from baton.evaluation.job import Done, Failed, Finished, Job, Ready, Reply

LOG_LINES = 12
_REPLIES = msgspec.json.Decoder(Reply)


@dataclass(frozen=True)
class Place:
    """Where an engine runs. `devices`: its CUDA_VISIBLE_DEVICES."""

    devices: str
    log: Path


@dataclass
class _Engine:
    place: Place
    process: subprocess.Popen[bytes]
    deadline: float
    ready: bool = False
    finished: bool = False
    rest: bytes = b""
    replies: list[Reply] = field(default_factory=list[Reply])

    @property
    def pipe(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout


@dataclass(frozen=True)
class Generated:
    """`start_s`: until the last engine was ready. `generate_s`: from the first that was ready to the end."""

    start_s: float
    generate_s: float


def generate(
    jobs: Sequence[Job],
    places: Sequence[Place],
    on_done: Callable[[Done], None],
    start_s: float,
    stall_s: float,
) -> Generated:
    """Runs every job in a process of its own and hands on each sample as it comes.

    `start_s`: until an engine is ready; `stall_s`: from one token of an engine to the next, in a full batch.
    Raises BatonError ENGINE_DIED, ENGINE_STALLED, or whatever an engine failed with. Nothing of them is left.
    """
    began = time.monotonic()
    engines: list[_Engine] = []
    try:
        for job, place in zip(jobs, places, strict=True):
            engines.append(_Engine(place, _start(job, place), began + start_s))
        first, last = _listen(engines, on_done, start_s, stall_s)
        return Generated(last - began, time.monotonic() - first)
    finally:
        for engine in engines:
            _end(engine)


def _start(job: Job, place: Place) -> subprocess.Popen[bytes]:
    source = str(Path(__file__).parents[2])
    path = os.pathsep.join(each for each in (source, os.environ.get("PYTHONPATH")) if each)
    environment = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": place.devices}
    place.log.parent.mkdir(parents=True, exist_ok=True)
    # As a file: a pipe would have to be filled while the process imports what it needs.
    with tempfile.TemporaryFile() as given, place.log.open("wb") as log:
        given.write(msgspec.json.encode(job))
        given.seek(0)
        return subprocess.Popen(
            [sys.executable, "-m", "baton.evaluation.engine_process", str(os.getpid())],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            env=environment,
        )


def _listen(
    engines: Sequence[_Engine], on_done: Callable[[Done], None], start_s: float, stall_s: float
) -> tuple[float, float]:
    """When the first and the last engine were ready. Until all have finished."""
    ready: list[float] = []
    with selectors.DefaultSelector() as selector:
        for engine in engines:
            selector.register(engine.pipe, selectors.EVENT_READ, engine)
        while selector.get_map():
            now = time.monotonic()
            waiting = [key.data for key in selector.get_map().values()]
            soonest = min(waiting, key=lambda each: each.deadline)
            if soonest.deadline <= now:
                raise _stalled(soonest, start_s, stall_s)
            for key, _ in selector.select(soonest.deadline - now):
                engine: _Engine = key.data
                if not _read(engine):
                    raise _died(engine)
                for reply in engine.replies:
                    engine.deadline = time.monotonic() + stall_s
                    if isinstance(reply, Ready):
                        engine.ready = True
                        ready.append(time.monotonic())
                    elif isinstance(reply, Done):
                        on_done(reply)
                    elif isinstance(reply, Failed):
                        raise _with_log(BatonError.from_wire(reply.failure), engine)
                    elif isinstance(reply, Finished):
                        engine.finished = True
                if engine.finished:
                    selector.unregister(engine.pipe)
    return ready[0], ready[-1]


def _read(engine: _Engine) -> bool:
    """Whether it still says something; its whole lines are in `replies`."""
    part = os.read(engine.pipe.fileno(), 1 << 20)
    *lines, engine.rest = (engine.rest + part).split(b"\n")
    engine.replies = [_REPLIES.decode(line) for line in lines]
    return bool(part)


def _end(engine: _Engine) -> None:
    """A vLLM of several GPUs ends its workers when it may end by itself."""
    process = engine.process
    if engine.finished:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60.0)
    process.kill()
    process.wait()
    engine.pipe.close()


def _died(engine: _Engine) -> BatonError:
    status = engine.process.wait()
    died = BatonError(
        "ENGINE_DIED",
        "An engine ended before its work was done.",
        expected="all samples",
        found=f"signal {-status}" if status < 0 else f"exit status {status}",
        action=f"Read {engine.place.log}.",
    )
    return _with_log(died, engine)


def _stalled(engine: _Engine, start_s: float, stall_s: float) -> BatonError:
    if not engine.ready:
        what, expected, option = "did not start in time", f"a loaded model within {start_s:g} s", "--start-deadline"
    else:
        what, expected, option = "stopped making tokens", f"one more within {stall_s:g} s", "--stall-deadline"
    action = f"Read {engine.place.log}; raise {option} if it was at work."
    stalled = BatonError("ENGINE_STALLED", f"An engine {what}.", expected, "nothing", action)
    return _with_log(stalled, engine)


def _with_log(error: BatonError, engine: _Engine) -> BatonError:
    lines = engine.place.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    error.found = "\n    ".join([error.found, *(line[:300] for line in lines)])
    return error
