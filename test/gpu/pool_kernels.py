"""The copy and checksum kernels against torch and numpy, on a real GPU."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from baton import native
from support import DEVICE, GIB, MIB, Checks, fill, seconds_of

U64 = np.uint64


def check_copies(checks: Checks) -> None:
    """The batched copy kernel against torch, at every alignment, and its speed."""
    chance = random.Random(5)
    source = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    fill(source, 7)
    got, want = torch.zeros_like(source), torch.zeros_like(source)
    runs, offset = [], 0
    while offset < 60 * MIB:
        length = chance.choice([1, 2, 3, 15, 16, 17, 31, 896, 897, 4096, 16384, 16385, 100_000, 1_000_003])
        offset += chance.choice([0, 1, 2, 3, 7, 8, 16])
        start = chance.randrange(source.numel() - length)
        runs.append((0, 0, start, got.data_ptr() + offset, length))
        want[offset : offset + length] = source[start : start + length]
        offset += length
    chance.shuffle(runs)
    plan = native.CopyPlan(DEVICE, np.array(runs, dtype=native.RUN))
    torch.cuda.synchronize()
    plan.execute([source.data_ptr()])
    checks.that(f"copy kernel: {len(runs)} runs of any alignment", torch.equal(got, want))
    plan.close()
    size = 4 * GIB
    big, to = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    fill(big, 3)
    direct = seconds_of(lambda: to.copy_(big))
    checks.figure("torch device to device GB/s", size / direct / 1e9)
    for length in (896, 16 * 1024, size):
        whole = np.zeros(size // length, dtype=native.RUN)
        whole["src_offset"] = np.arange(whole.size, dtype=U64)[::-1] * U64(length)
        whole["dst"] = to.data_ptr() + np.arange(whole.size, dtype=U64) * U64(length)
        whole["bytes"] = length
        plan = native.CopyPlan(DEVICE, whole)
        best = min(plan.execute([big.data_ptr()]).total_ns for _ in range(4))
        moved = whole.size * length
        checks.figure(f"copy kernel, runs of {length}: GB/s", moved / best)
        checks.figure(f"copy kernel, runs of {length}: of torch", moved / best / (size / direct / 1e9))
        if length < size:
            rows = torch.equal(to[:moved].view(-1, length), big[:moved].view(-1, length).flip(0))
            checks.that(f"copy kernel, runs of {length}: right", rows)
        plan.close()


def check_rounding(checks: Checks) -> None:
    """float32 to bfloat16 on the way, against torch, at every alignment of elements; its sums, and its speed."""
    chance = random.Random(8)
    count = 16 * MIB
    bits = torch.randint(-(2**31), 2**31, (count,), dtype=torch.int64, device="cuda").to(torch.int32)
    source = bits.view(torch.float32)
    source[::7] = 1.00390625  # half-way between two of bfloat16's numbers
    source[source.isnan()] = 0.5  # which one a NaN becomes is not torch's matter
    got = torch.zeros(count, dtype=torch.bfloat16, device="cuda")
    want = torch.zeros_like(got)
    runs, items, offset = [], [], 0
    while offset < 15 * MIB:
        length = chance.choice([1, 2, 3, 7, 8, 9, 448, 4096, 8192, 8193, 100_001])
        offset += chance.choice([0, 1, 2, 3, 4, 8])
        start = chance.randrange(count - length)
        runs.append((0, native.ROUNDED, 4 * start, got.data_ptr() + 2 * offset, 2 * length))
        items.append((source.data_ptr() + 4 * start, offset, length, 4, native.ROUNDED, len(items)))
        want[offset : offset + length] = source[start : start + length].bfloat16()
        offset += length
    held = [(run[3], item[1], item[2], 2, native.PLAIN, item[5]) for run, item in zip(runs, items, strict=True)]
    plan = native.CopyPlan(DEVICE, np.array(chance.sample(runs, len(runs)), dtype=native.RUN))
    torch.cuda.synchronize()
    plan.execute([source.data_ptr()])
    checks.that(f"rounding: {len(runs)} runs of any alignment", torch.equal(got.view(torch.int16), want.view(torch.int16)))
    plan.close()
    sums = [native.checksum(DEVICE, np.array(each, dtype=native.CHECKSUM_ITEM), len(items)) for each in (items, held)]
    checks.that("rounding: sums of what it gives are known before", sums[0].tolist() == sums[1].tolist())
    size = GIB
    big = torch.randn(size, device="cuda")
    to = torch.empty(size, dtype=torch.bfloat16, device="cuda")
    plan = native.CopyPlan(DEVICE, np.array([(0, native.ROUNDED, 0, to.data_ptr(), 2 * size)], dtype=native.RUN))
    best = min(plan.execute([big.data_ptr()]).total_ns for _ in range(4)) / 1e9
    checks.that("rounding: 4 GiB are right", torch.equal(to, big.bfloat16()))
    checks.figure("rounding, read and written: GB/s", 6 * size / best / 1e9)
    checks.figure("rounding: by torch, GB/s", 6 * size / seconds_of(lambda: to.copy_(big)) / 1e9)
    plan.close()


def element_hashes(first: int, values: np.ndarray[Any, Any]) -> int:
    """The formula of native/copy/checksum.h, in numpy: an implementation of its own."""
    with np.errstate(over="ignore"):
        index = np.arange(first, first + values.size, dtype=U64)
        low, high = values.astype(U64) & U64(0xFFFFFFFF), values.astype(U64) >> U64(32)
        hashes = (low + U64(1)) * place_factors(index) + high * place_factors(~index)
        return int(hashes.sum(dtype=U64))


def place_factors(index: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x = (index + (index >> U64(32)) * U64(0x9E3779B9)).astype(np.uint32)
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return U64(1 << 32) + (x ^ (x >> 16)).astype(U64)


def check_checksums(checks: Checks) -> None:
    """The checksum kernel against the formula, for every width and alignment, and its speed."""
    data = torch.empty(8 * MIB, dtype=torch.uint8, device="cuda")
    fill(data, 11)
    host = data.cpu().numpy()
    items, wanted = [], []
    chance = random.Random(6)
    for width in (1, 2, 4, 8):
        for _ in range(40):
            start = chance.randrange(0, MIB)
            if chance.random() < 0.5:
                start = start // 16 * 16
            elements = chance.choice([1, 7, 64, 1000, 65536, 300_001])
            first = chance.choice([0, 5, 1 << 33])
            items.append((data.data_ptr() + start, first, elements, width, native.PLAIN, len(items)))
            values = host[start : start + elements * width].copy().view(np.dtype(f"<u{width}"))
            wanted.append(element_hashes(first, values))
    torch.cuda.synchronize()
    got = native.checksum(DEVICE, np.array(items, dtype=native.CHECKSUM_ITEM), len(items))
    checks.that(f"checksum kernel: {len(items)} sums of any width and alignment", got.tolist() == wanted)
    covered = native.checksum(DEVICE, np.array(items, dtype=native.CHECKSUM_ITEM), len(items), indices_only=True)
    right = all(
        int(covered[i]) == element_hashes(int(item[1]), np.zeros(item[2], dtype=U64)) for i, item in enumerate(items)
    )
    checks.that("checksum kernel: indices only", right)
    size = 4 * GIB
    big = torch.empty(size, dtype=torch.uint8, device="cuda")
    whole = np.array([(big.data_ptr(), 0, size // 2, 2, native.PLAIN, 0)], dtype=native.CHECKSUM_ITEM)
    native.checksum(DEVICE, whole, 1)
    best = seconds_of(lambda: native.checksum(DEVICE, whole, 1))
    checks.figure("checksum kernel, bf16: GB/s", size / best / 1e9)
