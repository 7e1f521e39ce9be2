"""The tensor-parallel group: two collectives over gloo, blocking, with a deadline."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import FileStore, ProcessGroupGloo  # pyright: ignore[reportPrivateImportUsage]

from baton.errors import BatonError

# torch's type stubs know only its name. Used directly because a call through torch.distributed costs several times as
# much as the small models' sums themselves.
_Gloo: Any = ProcessGroupGloo


class Group:
    """`size` workers that compute one model together.

    Sums travel as float32 whatever the model's dtype, so that a split product is rounded once, as an unsplit one
    is. Every worker gets the same bits. A lost peer or a passed deadline raises
    BatonError WORKER_GROUP_BROKEN.
    """

    def __init__(self, rank: int, size: int, store: str | Path | None = None, deadline: float = 60.0) -> None:
        """`store`: a file in a private folder, the same for all; not needed when `size` is 1."""
        self.rank = rank
        self.size = size
        self._gloo: Any = None
        if size > 1:
            options = _Gloo._Options()
            # Loopback by address: the name of the machine may not resolve.
            options._devices = [_Gloo.create_device(hostname="127.0.0.1")]
            options._timeout = timedelta(seconds=deadline)
            options._threads = 1
            self._gloo = _Gloo(FileStore(str(store), size), rank, size, options)

    def sum(self, partial: Tensor) -> Tensor:
        """The sum of every worker's `partial`, in float32; `partial` itself when it has that type."""
        total = partial.float().contiguous()
        if self._gloo is not None:
            with self._together():
                self._gloo.allreduce([total]).wait()
        return total

    def concatenate(self, shard: Tensor) -> Tensor:
        """Shards [rows, n] of all workers side by side: [rows, size * n]."""
        if self._gloo is None:
            return shard
        rows, columns = shard.shape
        gathered = shard.new_empty(self.size * rows, columns)
        with self._together():
            self._gloo._allgather_base(gathered, shard.contiguous()).wait()
        return gathered.view(self.size, rows, columns).transpose(0, 1).reshape(rows, self.size * columns)

    def barrier(self) -> None:
        self.sum(torch.zeros(1))

    @contextmanager
    def _together(self) -> Generator[None]:
        try:
            yield
        except RuntimeError as error:
            raise BatonError(
                "WORKER_GROUP_BROKEN",
                f"Worker {self.rank} lost the other tensor-parallel workers of its engine.",
                expected=f"{self.size} workers that compute together",
                found=str(error),
                action="Another worker has ended or does not answer: its own messages say why.",
            ) from error
