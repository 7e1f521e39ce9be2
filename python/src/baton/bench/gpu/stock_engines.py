"""vLLM as it comes on several GPUs: one `LLM` a process, each with its GPUs, all of them asked at once.

vLLM's IPC transfer wants each worker's GPU to hold the whole of every tensor, and one message with the handles of all
GPUs (by UUID), from which a worker takes its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Generator
from multiprocessing.connection import Connection, wait
from typing import Any

from baton.bench.gpu.part import Job

_START_SECONDS, _CALL_SECONDS = 300.0, 120.0
#: What a launcher sets for its ranks, and vLLM takes for its own.
_LAUNCHER = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ASYNC_ERROR_HANDLING"),
}


class Engines:
    """All engines of a job, started at once. Its calls raise what any engine raises."""

    def __init__(self, job: Job) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ends: list[Connection[Any, Any]] = []
        self.processes: list[Any] = []
        for engine in range(job.engines):
            mine, theirs = spawn.Pipe()
            devices = range(engine * job.tp, (engine + 1) * job.tp)
            process = spawn.Process(target=_serve, args=(theirs, job), name=f"stock engine {engine}")
            with _environment_of_engine(devices, job.gpus):
                process.start()
            theirs.close()
            self._ends.append(mine)
            self.processes.append(process)
        self._answers(_START_SECONDS)

    def sleep(self) -> None:
        self.call("sleep", 2)

    def wake(self, tag: str) -> None:
        self.call("wake_up", [tag])

    def generate(self, prompts: list[list[list[int]]], max_tokens: int, temperature: float) -> int:
        """How many tokens came; `prompts` by engine."""
        for end, mine in zip(self._ends, prompts, strict=True):
            end.send(("generate", (mine, max_tokens, temperature)))
        return sum(self._answers(_CALL_SECONDS))

    def update(self, info: dict[str, Any]) -> None:
        """One part of an update of the weights, with handles for all GPUs."""
        self.call("update_weights", {"update_info": info})

    def call(self, name: str, *arguments: Any) -> list[Any]:
        """A method of every LLM; their answers."""
        for end in self._ends:
            end.send((name, arguments))
        return self._answers(_CALL_SECONDS)

    def close(self) -> None:
        for end in self._ends:
            end.close()
        for process in self.processes:
            process.join(15)
            if process.is_alive():
                process.kill()

    def _answers(self, seconds: float) -> list[Any]:
        ends = time.monotonic() + seconds
        found: dict[int, Any] = {}
        while len(found) < len(self._ends):
            waiting = [end for number, end in enumerate(self._ends) if number not in found]
            ready = wait(waiting, max(0.0, ends - time.monotonic()))
            if not ready:
                raise TimeoutError(f"{len(found)} of {len(self._ends)} stock engines answered within {seconds:g} s")
            for end in ready:
                assert isinstance(end, Connection)
                found[self._ends.index(end)] = end.recv()
        failures = [answer for good, answer in found.values() if not good]
        if failures:
            raise RuntimeError(f"a stock engine failed: {failures[0]}")
        return [found[number][1] for number in range(len(self._ends))]


@contextlib.contextmanager
def _environment_of_engine(devices: range, gpus: int) -> Generator[None]:
    """For a process that is started inside: its GPUs first, the others behind them (their memory is mapped too)."""
    before = dict(os.environ)
    visible = before.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    own = [visible[device] for device in devices]
    for name in list(os.environ):
        if name in _LAUNCHER or name.startswith("TORCHELASTIC_"):
            del os.environ[name]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own + [name for name in visible if name not in own])
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(end: Connection, job: Job) -> None:
    """One engine's process, until its owner closes the connection."""
    from baton.bench.gpu.stock import generate, start_vllm

    def answer(work: Any) -> bool:
        try:
            end.send((True, work()))
            return True
        except Exception as error:
            traceback.print_exc()
            end.send((False, f"{type(error).__name__}: {error}"))
            return False

    made: list[Any] = []
    if not answer(lambda: made.append(start_vllm(job, tensor_parallel_size=job.tp))):
        return
    (llm,) = made

    def perform(name: str, arguments: Any) -> Any:
        if name == "generate":
            prompts, max_tokens, temperature = arguments
            return generate(llm, prompts, max_tokens, temperature=temperature)
        getattr(llm, name)(*arguments)
        return None

    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            name, arguments = end.recv()
            answer(lambda name=name, arguments=arguments: perform(name, arguments))
