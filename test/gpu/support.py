"""What the checks on a real GPU share: their record, NVML's figure, and torch's view of an address."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

MIB = 1 << 20
GIB = 1 << 30
DEVICE = 0  # what the checks run on


class Checks:
    """A record of checks and figures, printed as they come."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.failed: list[str] = []
        self.passed: list[str] = []
        self.figures: dict[str, float] = {}

    def that(self, what: str, holds: bool, more: str = "") -> None:
        (self.passed if holds else self.failed).append(what)
        print(f"{'ok  ' if holds else 'FAIL'} {what}" + (f": {more}" if more and not holds else ""), flush=True)

    def figure(self, what: str, value: float) -> None:
        self.figures[what] = round(float(value), 4)
        print(f"     {what}: {value:.4g}", flush=True)

    def run(self, check: Callable[..., None], *arguments: Any) -> None:
        """A check that raises has failed; the others go on."""
        begin = time.perf_counter()
        try:
            check(*arguments)
        except Exception:
            self.that(check.__name__, False, traceback.format_exc())
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"     [{check.__name__} took {time.perf_counter() - begin:.1f} s]", flush=True)

    def end(self, path: str | None = None) -> int:
        """Prints a summary, writes it to `path`; returns the exit code."""
        versions = {"torch": torch.__version__, **gpu_and_driver()}
        print(f"{self.name}: {len(self.passed)} checks passed, {len(self.failed)} failed ({versions})", flush=True)
        for what in self.failed:
            print(f"  failed: {what}", flush=True)
        if path:
            record = {"name": self.name, "failed": self.failed, "passed": self.passed, "figures": self.figures}
            with open(path, "w") as file:
                json.dump({**record, "versions": versions}, file, indent=1)
        return 1 if self.failed else 0


@cache
def _nvml(gpu: int = 0) -> Any:
    import pynvml

    pynvml.nvmlInit()
    return pynvml, pynvml.nvmlDeviceGetHandleByIndex(gpu)


def device_bytes_used(gpu: int = 0) -> int:
    """Bytes in use on a GPU by everybody, as NVML says."""
    pynvml, handle = _nvml(gpu)
    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)


def device_bytes_total(gpu: int = 0) -> int:
    """Bytes that a GPU has, as NVML says."""
    pynvml, handle = _nvml(gpu)
    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)


def give_back(size: int) -> None:
    """Takes so many bytes of the GPU and gives them back, as an engine that goes to sleep."""
    given = torch.empty(size, dtype=torch.uint8, device="cuda")
    del given
    torch.cuda.empty_cache()


def gpu_and_driver() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {"gpu": "stand-in (simulated)", "driver": "none"}
    pynvml, _ = _nvml()
    text = pynvml.nvmlSystemGetDriverVersion()
    return {"gpu": torch.cuda.get_device_name(), "driver": text if isinstance(text, str) else text.decode()}


class _Memory:
    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 2}


def tensor_at(address: int, size: int) -> torch.Tensor:
    """`size` bytes of device memory as a uint8 tensor, without a copy."""
    tensor = torch.as_tensor(_Memory(address, size), device="cuda")
    assert tensor.data_ptr() == address
    return tensor


def bytes_sum(native: Any, address: int, size: int) -> int:
    """The checksum of `size` bytes of device memory, a multiple of 8."""
    item = np.array([(address, 0, size // 8, 8, native.PLAIN, 0)], dtype=native.CHECKSUM_ITEM)
    return int(native.checksum(0, item, 1)[0])


def fill(tensor: torch.Tensor, seed: int) -> None:
    """Random bytes; the same for the same seed and size."""
    generator = torch.Generator(device="cuda").manual_seed(seed)
    words = tensor[: tensor.numel() // 8 * 8].view(torch.int64)
    step = 1 << 27
    for begin in range(0, words.numel(), step):
        words[begin : begin + step].random_(generator=generator)


def seconds_of(work: Any, rounds: int = 3) -> float:
    """The best of some rounds."""
    best = float("inf")
    for _ in range(rounds):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return best


def arena_fd(size: int) -> int:
    fd = os.memfd_create("arena", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd
