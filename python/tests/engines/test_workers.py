"""An engine whose own words do not say that a worker died."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from baton.engines.workers import DEATH_SECONDS, lost_worker, state_of
from baton.errors import BatonError

WORDS = RuntimeError("Executor failed.")


@pytest.fixture
def workers() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("reaped", [False, True])
def test_the_one_that_was_killed_is_named(workers: list[subprocess.Popen[bytes]], reaped: bool) -> None:
    workers[1].kill()
    if reaped:
        workers[1].wait()
    found = lost_worker(WORDS, [process.pid for process in workers], engine=3)
    assert found is not None
    assert found.code == "ENGINE_WORKER_DIED"
    assert "Worker 1 of engine 3 " in str(found)
    assert found.found == "RuntimeError: Executor failed."


def test_all_that_are_dead_are_named(workers: list[subprocess.Popen[bytes]]) -> None:
    for process in workers:
        process.kill()
        process.wait()
    found = lost_worker(WORDS, [process.pid for process in workers], engine=3)
    assert found is not None
    assert "Worker 0 of engine 3 " in str(found)
    assert "Worker 1 of engine 3 " in str(found)


def test_an_error_of_workers_that_live_is_what_it_says(workers: list[subprocess.Popen[bytes]]) -> None:
    began = time.monotonic()
    assert lost_worker(WORDS, [process.pid for process in workers], engine=0) is None
    assert time.monotonic() - began < DEATH_SECONDS + 1


def test_an_error_that_says_what_happened_is_kept(workers: list[subprocess.Popen[bytes]]) -> None:
    workers[0].kill()
    error = BatonError("CACHE_IN_USE", "m", expected="e", found="f", action="a")
    assert lost_worker(error, [workers[0].pid], engine=0) is None


def test_a_worker_in_this_process_lives() -> None:
    assert lost_worker(WORDS, [os.getpid()], engine=0) is None


def test_states() -> None:
    assert state_of(os.getpid()) == "running"
    process = subprocess.Popen(["sleep", "60"])
    process.kill()
    while state_of(process.pid) != "dead":
        time.sleep(0.001)
    process.wait()
    assert state_of(process.pid) == "gone"
