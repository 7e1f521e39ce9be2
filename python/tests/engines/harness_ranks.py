"""Processes that hold the trainer's tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping

from harness_run import HERE, Run
from torch import Tensor

from baton.protocol import messages as m


class Ranks:
    """Processes that hold the trainer's tensors in exportable pools, as ZeRO-3 (partitioned) or ZeRO-2 would."""

    def __init__(self, run: Run, tensors: Mapping[str, Tensor], world: int, stage: int) -> None:
        self.run = run
        self.file = run.folder / f"tensors-{run.next_seq()}"
        self.names = list(tensors)
        self.sizes = [tensor.numel() for tensor in tensors.values()]
        self.write(tensors)
        spec = {
            "file": str(self.file),
            "world": world,
            "stage": stage,
            "names": self.names,
            "shapes": [list(tensor.shape) for tensor in tensors.values()],
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
        }
        self.processes = [
            run.spawn([str(HERE / "rank_process.py")], TEST_RANK=json.dumps(spec | {"rank": rank}))
            for rank in range(world)
        ]
        self.clients = [run.accept("rank", rank) for rank in range(world)]
        self.manifests = [client.expect(m.Manifest)[0] for client in self.clients]
        self.stage = stage

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        import torch

        with self.file.open("wb") as file:
            for tensor in tensors.values():
                file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

    def train(self, tensors: Mapping[str, Tensor]) -> None:
        """New values at the same places."""
        self.write(tensors)
        for client in self.clients:
            client.frames.send(m.Resume(seq=self.run.next_seq()))
        for client in self.clients:
            client.expect(m.Resumed)
