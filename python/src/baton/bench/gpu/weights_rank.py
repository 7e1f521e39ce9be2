"""One rank of a trainer as the sync sees it: bf16 weights in Baton's training memory, laid out as DeepSpeed does.

Parameters only, so that shapes fit whose optimizer state would not. ZeRO-2 keeps all of them in one flat buffer, ZeRO-3
this rank's partition of each, one after the other: where a tensor cannot be divided, they lie at odd addresses.
Started by `desk`, with its specification in BATON_BENCH_RANK.
"""

from __future__ import annotations

import json
import math
import os

import numpy as np
import torch

from baton import native
from baton.bench.gpu.model import tensors_of
from baton.bench.gpu.part import simulated, synchronize
from baton.connection import Connection
from baton.errors import BatonError
from baton.protocol import arrays
from baton.protocol import messages as m
from baton.protocol.frames import MAX_DESCRIPTORS
from baton.training.memory import TrainingMemory
from baton.weights.checksums import NOT_ASKED, Checksums

_WIDTH = 2


def main() -> None:
    spec = json.loads(os.environ["BATON_BENCH_RANK"])
    rank, world, stage, gpu = (int(spec[name]) for name in ("rank", "world", "stage", "gpu"))
    tensors = tensors_of(spec["model"])
    pieces: list[tuple[int, int, int, int]] = []  # tensor, first element, elements, offset in elements
    at = 0
    for index, shape in enumerate(tensors.values()):
        elements = math.prod(shape)
        share = -(-elements // world) if stage == 3 else elements
        begin = min(rank * share, elements) if stage == 3 else 0
        count = min(share, elements - begin)
        if count:
            pieces.append((index, begin, count, at))
        at += share
    device = "cpu" if simulated() else f"cuda:{gpu}"
    if not simulated():
        torch.cuda.set_device(gpu)
        torch.zeros(1, device=device)
    memory = TrainingMemory(gpu, weight_bytes=_WIDTH * sum(math.prod(shape) for shape in tensors.values()))
    with memory:
        flat = torch.empty(at, dtype=torch.bfloat16, device=device)
    torch.manual_seed(11 + rank if stage == 3 else 11)  # replicas are the same
    flat.normal_(0, 0.02)
    synchronize()
    if not memory.pool.owns(flat.data_ptr()):
        raise SystemExit("the weights are not in the training memory")
    _serve(rank, world, stage, gpu, memory.pool, tensors, pieces, flat)


def _serve(
    rank: int,
    world: int,
    stage: int,
    gpu: int,
    pool: native.Pool,
    tensors: dict[str, tuple[int, ...]],
    pieces: list[tuple[int, int, int, int]],
    flat: torch.Tensor,
) -> None:
    """Sends the manifest, then exports what is asked for, as `Rollout` does."""
    base = flat.data_ptr()
    dtypes = ["bfloat16"] * len(tensors)
    items = np.array(
        [(base + offset * _WIDTH, start, count, _WIDTH, native.PLAIN, index) for index, start, count, offset in pieces],
        native.CHECKSUM_ITEM,
    )
    connection = Connection.open("rank", rank, gpu=gpu, local_rank=rank, world_size=world, local_world_size=world)
    connection.send(
        m.Manifest(
            zero_stage=stage,
            dtype="bfloat16",
            segment_bytes=pool.segment_bytes,
            names=list(tensors),
            dtypes=dtypes,
            shapes=[list(shape) for shape in tensors.values()],
            piece_tensor=arrays.binary_u32([piece[0] for piece in pieces]),
            piece_start=arrays.binary_u64([piece[1] for piece in pieces]),
            piece_elements=arrays.binary_u64([piece[2] for piece in pieces]),
            piece_offset=arrays.binary_u64([base + piece[3] * _WIDTH - pool.base for piece in pieces]),
            state_bytes=0,
            arena_bytes=0,
        )
    )
    while True:
        message, _ = connection.expect(m.ExportSegments)
        segments = arrays.u64s(message.segments, "segments")
        sums = Checksums.of(gpu, items, dtypes).on_the_wire() if message.checksums else NOT_ASKED
        for begin in range(0, max(segments.size, 1), MAX_DESCRIPTORS):
            part = segments[begin : begin + MAX_DESCRIPTORS]
            last = begin + part.size >= segments.size
            descriptors = [pool.export(int(segment)) for segment in part]
            connection.send(
                m.Exported(
                    seq=message.seq,
                    segments=arrays.binary_u64(part),
                    last=last,
                    **(sums if last else NOT_ASKED),
                ),
                descriptors,
            )
            for descriptor in descriptors:
                os.close(descriptor)


if __name__ == "__main__":
    try:
        main()
    except BatonError as error:
        if error.code not in ("CONNECTION_LOST", "RUN_ENDED"):
            raise
