"""Holds its part of the trainer's tensors in an exportable pool, and exports segments. Started by the harness."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path

import numpy as np

from baton import native
from baton.connection import Connection
from baton.errors import BatonError
from baton.protocol import arrays
from baton.protocol import messages as m
from baton.weights.checksums import NOT_ASKED, Checksums

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def upload(device: int, address: int, data: bytes) -> None:
    """Copies to memory of a real GPU, through torch."""
    import torch

    from baton.engines.vllm.memory import view_of

    torch.cuda.set_device(device)
    view_of(address, len(data), device).copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    torch.cuda.synchronize()


def randomize(device: int, address: int, elements: int, seed: int) -> None:
    """Normal bfloat16 numbers, on a real GPU."""
    import torch

    from baton.engines.vllm.memory import view_of

    torch.cuda.set_device(device)
    torch.manual_seed(seed)
    view_of(address, 2 * elements, device).view(torch.bfloat16).normal_(0, 0.02)
    torch.cuda.synchronize()


def main() -> None:
    spec = json.loads(os.environ["TEST_RANK"])
    rank, world, stage = spec["rank"], spec["world"], spec["stage"]
    pool = native.Pool(rank, name="rank", exportable=True, segment_bytes=spec.get("segment_bytes", 0))
    pieces: list[tuple[int, int, int, int, int]] = []  # tensor, start, elements, address, offset in the file
    at = 0
    for index, (shape, dtype) in enumerate(zip(spec["shapes"], spec["dtypes"], strict=True)):
        elements, width = int(np.prod(shape)), BYTES[dtype]
        part = -(-elements // world) if stage == 3 else elements
        begin = min(rank * part, elements) if stage == 3 else 0
        end = min(begin + part, elements)
        if begin < end:
            # Odd multiples of the element size, as DeepSpeed's partitions have them.
            shift = 0 if spec.get("aligned") else width
            address = pool.allocate((end - begin) * width + shift, 512) + shift
            pieces.append((index, begin, end - begin, address, at + begin * width))
        at += elements * width

    simulated = native.driver_probe().simulated

    def fill() -> None:
        if not spec["file"]:
            for index, _, elements, address, _ in pieces:
                randomize(rank, address, elements, index)
            return
        data = Path(spec["file"]).read_bytes()
        for index, _, elements, address, offset in pieces:
            size = elements * BYTES[spec["dtypes"][index]]
            if simulated:
                ctypes.memmove(address, data[offset : offset + size], size)
            else:
                upload(rank, address, data[offset : offset + size])

    fill()
    items = np.array(
        [(address, start, n, BYTES[spec["dtypes"][i]], native.PLAIN, i) for i, start, n, address, _ in pieces],
        native.CHECKSUM_ITEM,
    )
    connection = Connection.open("rank", rank, gpu=rank, local_rank=rank, world_size=world, local_world_size=world)
    connection.send(
        m.Manifest(
            zero_stage=stage,
            dtype=spec["dtypes"][0],
            segment_bytes=pool.segment_bytes,
            names=spec["names"],
            dtypes=spec["dtypes"],
            shapes=spec["shapes"],
            piece_tensor=arrays.binary_u32([piece[0] for piece in pieces]),
            piece_start=arrays.binary_u64([piece[1] for piece in pieces]),
            piece_elements=arrays.binary_u64([piece[2] for piece in pieces]),
            piece_offset=arrays.binary_u64([piece[3] - pool.base for piece in pieces]),
            state_bytes=0,
            arena_bytes=0,
        )
    )
    while True:
        message, _ = connection.receive()
        if isinstance(message, m.Resume):
            fill()
            connection.send(
                m.Resumed(seq=message.seq, copied_bytes=0, pending_bytes=0, seconds=0, simulated_seconds=None)
            )
            continue
        assert isinstance(message, m.ExportSegments)
        descriptors = [pool.export(int(number)) for number in arrays.u64s(message.segments, "segments")]
        sums = Checksums.of(rank, items, spec["dtypes"]).on_the_wire() if message.checksums else NOT_ASKED
        connection.send(
            m.Exported(seq=message.seq, segments=message.segments, last=True, **sums),
            descriptors,
        )
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    try:
        main()
    except BatonError:
        os._exit(0)
