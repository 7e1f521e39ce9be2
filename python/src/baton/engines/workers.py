"""What the kernel says of an engine's workers."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from baton.errors import BatonError

#: An engine that is told of a worker's death by a broken connection may hear of it before the kernel is done with it.
DEATH_SECONDS = 0.2
POLL_SECONDS = 0.005
_WORDS = {"T": "stopped", "t": "traced", "Z": "dead", "X": "dead", "R": "running", "S": "waiting", "D": "waiting"}


def state_of(pid: int | None) -> str:
    """The kernel's state of the process, in a word; "gone" when there is none, "not started" when there never was."""
    if pid is None:
        return "not started"
    try:
        with open(f"/proc/{pid}/stat") as file:
            letter = file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
    return _WORDS.get(letter, letter)


def lost_worker(error: BaseException, pids: Sequence[int], engine: int) -> BatonError | None:
    """ENGINE_WORKER_DIED when workers are dead whose death may be behind an error that does not say so; else None.

    Engines that are not ours have words of their own for it. `pids`: by tensor-parallel rank; one that is this process
    is a worker that lives in it.
    """
    if isinstance(error, BatonError):
        return None
    ends = time.monotonic() + DEATH_SECONDS
    while True:
        dead = [
            f"Worker {rank} of engine {engine} (process {pid})"
            for rank, pid in enumerate(pids)
            if pid != os.getpid() and state_of(pid) in ("dead", "gone")
        ]
        if dead:
            # Some may have been ended because of the first; the kernel tells the controller which.
            return BatonError(
                "ENGINE_WORKER_DIED",
                f"{', '.join(dead)} ended unexpectedly.",
                expected="all workers of the engine running",
                found=f"{type(error).__name__}: {error}",
                action="Read the engine's output; if it was killed, see whether the machine ran out of memory.",
            )
        if time.monotonic() >= ends:
            return None
        time.sleep(POLL_SECONDS)
