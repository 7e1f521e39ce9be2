"""One part of the bench: a process with a job, which writes what it measures to a file as it goes.

    python -m baton.bench.gpu.PART '{"result": FILE, "model": FOLDER, "cycles": 10, …}'

The file is whole at every moment, so a part that dies or is ended at its deadline leaves what it had measured. Of a
part with several ranks rank 0 writes it; the others write one beside it, for what they fail of (FILE.rank1, …).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from baton import native

T = TypeVar("T")
Graphs = Literal["vllm", "decode", "none"]
_PACKAGES = ("torch", "vllm", "deepspeed", "transformers")


@dataclass(frozen=True)
class Job:
    """What a part is to measure."""

    result: str
    #: Folder with config.json.
    model: str
    #: Warm cycles; one cold one goes before them.
    cycles: int
    #: ZeRO stage.
    stage: int = 2
    #: KV cache of the engine.
    cache_bytes: int = 0
    #: "vllm": as vLLM does by default. "decode": only decoding is captured, nothing compiled. "none": eager.
    graphs: Graphs = "vllm"
    micro_batch: int = 4
    length: int = 512
    #: The engine is the small one, and the GPUs stand-ins.
    simulated: bool = False
    #: Ranks, one a GPU; engines, and workers of each.
    gpus: int = 1
    engines: int = 1
    tp: int = 1
    #: Optimizer steps between two handoffs.
    iterations: int = 1
    #: A frozen reference model beside the policy.
    reference: bool = False
    #: Rank of the adapters that are trained instead of all parameters; 0: none.
    lora: int = 0


class Results:
    """The file of one part. `values` are single figures, `samples` lists of one a cycle, the cold one first."""

    def __init__(self, job: Job) -> None:
        rank = int(os.environ.get("RANK", "0"))
        self._path = Path(job.result if rank == 0 else f"{job.result}.rank{rank}")
        self._began = time.monotonic()
        self.record: dict[str, Any] = {
            "job": vars(job),
            "finished": False,
            "at": "beginning",
            "failure": None,
            "seconds": 0.0,
            "versions": versions(),
            "machine": None,
            "values": {},
            "samples": {},
        }
        self.record["machine"] = machine(job.gpus)
        self._write()

    def step(self, text: str) -> None:
        """What is done from now on: named when it fails."""
        self.record["at"] = text
        self._write()
        print(f"[{time.monotonic() - self._began:7.1f} s] {text}", flush=True)

    def value(self, name: str, value: Any) -> None:
        print(f"{name}: {value}", flush=True)
        self.record["values"][name] = value
        self._write()

    def sample(self, name: str, value: float) -> None:
        self.record["samples"].setdefault(name, []).append(value)

    def timed(self, name: str, work: Callable[[], T]) -> T:
        """Calls `work`; its seconds are a sample."""
        began = time.perf_counter()
        made = work()
        self.sample(name, time.perf_counter() - began)
        return made

    def show(self) -> None:
        """Writes the samples so far, and prints their last cycle."""
        last = {name: round(values[-1], 6) for name, values in self.record["samples"].items() if values}
        print(json.dumps(last), flush=True)
        self._write()

    def end(self, failure: dict[str, str] | None) -> None:
        self.record |= {"finished": failure is None, "failure": failure}
        self._write()

    def _write(self) -> None:
        self.record["seconds"] = round(time.monotonic() - self._began, 1)
        beside = self._path.with_name(self._path.name + ".part")
        beside.write_text(json.dumps(self.record, indent=1))
        beside.replace(self._path)


def main(measure: Callable[[Job, Results], None]) -> None:
    """The whole of a part's process. Ends it: whatever a library has left running must not keep it."""
    job = Job(**json.loads(sys.argv[1]))
    results = Results(job)
    try:
        measure(job, results)
        results.end(None)
    except BaseException as error:
        # A rank's hook tells its controller too.
        sys.excepthook(type(error), error, error.__traceback__)
        code = str(getattr(error, "code", type(error).__name__))
        results.end({"code": code, "message": str(error)[:2000], "at": results.record["at"]})
    failed = results.record["failure"] is not None
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if failed else 0)


def versions() -> dict[str, str | None]:
    """None: not installed."""
    found: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


@cache
def _nvml(gpu: int = 0) -> Any:
    try:
        import pynvml
    except ImportError:
        from vllm.third_party import pynvml  # pyright: ignore
    pynvml.nvmlInit()
    return pynvml, pynvml.nvmlDeviceGetHandleByIndex(gpu)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def machine(gpus: int) -> dict[str, Any]:
    """GPU 0 as NVML knows it, and how many are used. None: it does not say."""
    pynvml, handle = _nvml()

    def ask(name: str, *arguments: Any) -> str | None:
        try:
            return _text(getattr(pynvml, name)(*arguments))
        except Exception:
            return None

    return {
        "gpu": ask("nvmlDeviceGetName", handle),
        "uuid": ask("nvmlDeviceGetUUID", handle),
        "driver": ask("nvmlSystemGetDriverVersion"),
        "totalBytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        "simulated": simulated(),
        "gpus": gpus,
    }


def used_bytes(gpu: int = 0) -> int:
    """Of this GPU, by everybody."""
    pynvml, handle = _nvml(gpu)
    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)


@cache
def simulated() -> bool:
    """Whether the GPUs are stand-ins."""
    return bool(native.driver_probe().simulated)


def synchronize() -> None:
    """Until everything queued on the GPU is done; nothing on a stand-in, where nothing is queued."""
    if not simulated():
        import torch

        torch.cuda.synchronize()
