"""What the peers add to vLLM's worker: `load_weights` from one buffer of the trainer, mapped once by CUDA IPC."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch


class BufferLoads:
    """A worker extension, as vLLM's documentation describes it."""

    def bench_open(self, arguments: Sequence[Any], tensors: Sequence[tuple[str, Sequence[int], int]]) -> None:
        """`arguments` of torch's rebuild_cuda_tensor; `tensors`: name, shape, offset in elements of bfloat16."""
        from torch.multiprocessing.reductions import rebuild_cuda_tensor

        worker: Any = self
        changed = list(arguments)
        changed[6] = worker.device.index
        self.bench_buffer = rebuild_cuda_tensor(*changed)
        self.bench_tensors: list[tuple[str, torch.Tensor]] = []
        for name, shape, offset in tensors:
            elements = torch.Size(shape).numel()
            self.bench_tensors.append((name, self.bench_buffer[offset : offset + elements].view(*shape)))

    def bench_load(self) -> float:
        """Seconds."""
        worker: Any = self
        torch.cuda.synchronize()
        began = time.perf_counter()
        worker.model_runner.model.load_weights(iter(self.bench_tensors))
        torch.cuda.synchronize()
        return time.perf_counter() - began

    def bench_close(self) -> None:
        del self.bench_tensors, self.bench_buffer
        torch.cuda.ipc_collect()
