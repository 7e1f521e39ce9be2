"""libbaton's pool on a real GPU: pauses, imports, copies and checksums.

    PYTHONPATH=python/src python3 test/gpu/pool_check.py [--gib 8] [--json FILE]

One line a check; figures are measured in the same run as the limit they stand beside. Exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import torch
from baton import native
from baton.errors import BatonError
from pool_import import check_import
from pool_kernels import check_checksums, check_copies, check_rounding
from support import DEVICE, GIB, MIB, Checks, arena_fd, device_bytes_used, fill, give_back, seconds_of, tensor_at


#: What an engine gives back when it sleeps.
AWAY_BYTES = 48 * GIB


def pinned_limits() -> tuple[float, float]:
    """GB/s from device to pinned host memory, and back."""
    size = 2 * GIB
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    gpu = torch.empty(size, dtype=torch.uint8, device="cuda")
    down = seconds_of(lambda: host.copy_(gpu, non_blocking=True))
    up = seconds_of(lambda: gpu.copy_(host, non_blocking=True))
    return size / down / 1e9, size / up / 1e9


def check_driver(checks: Checks) -> None:
    probe = native.driver_probe()
    checks.that("the real driver is found", probe.available and not probe.simulated, f"{probe}")
    free, total = native.device_memory(DEVICE)
    torch_free, torch_total = torch.cuda.mem_get_info(DEVICE)
    checks.that("memory figures agree with torch", total == torch_total and abs(free - torch_free) < 64 * MIB)
    checks.figure("device memory GiB", total / GIB)


def check_pause(checks: Checks, segment_bytes: int, size: int, fd: int, limits: tuple[float, float]) -> None:
    """Bytes, addresses, NVML's figure and speed of whole pauses with one segment size."""
    label = f"{segment_bytes // MIB} MiB segments"
    before_pool = device_bytes_used()
    pool = native.Pool(DEVICE, name="check", exportable=True, segment_bytes=segment_bytes)
    begin = time.perf_counter()
    pool.set_arena(fd, 0, size + 64 * MIB)
    checks.figure(f"{label}: arena s/GiB (map, touch, register)", (time.perf_counter() - begin) / (size / GIB))
    begin = time.perf_counter()
    addresses = [pool.allocate(size // 8 - index * 512 - 256, 512) for index in range(8)]
    checks.figure(f"{label}: allocate ms", (time.perf_counter() - begin) * 1e3)
    state = [tensor_at(address, size // 8 - index * 512 - 256) for index, address in enumerate(addresses)]
    for index, tensor in enumerate(state):
        fill(tensor, index)
    kept = [tensor.clone() for tensor in state]
    mapped = pool.info().mapped_bytes
    pauses: list[native.PauseReport] = []
    resumes: list[native.ResumeReport] = []
    same = fell = back = True
    for _ in range(4):
        used = device_bytes_used()
        pauses.append(pool.pause())
        while_paused = device_bytes_used()
        resumes.append(pool.resume())
        torch.cuda.synchronize()
        fell = fell and used - while_paused == pauses[-1].released_bytes == mapped
        back = back and device_bytes_used() == used
        same = same and all(torch.equal(now, then) for now, then in zip(state, kept, strict=True))
    checks.that(f"{label}: bytes and addresses are the same after 4 cycles", same)
    checks.that(f"{label}: NVML falls by what the report says", fell, f"{mapped} mapped, {pauses[-1]}")
    checks.that(f"{label}: NVML rises by the same", back)
    best, back_best = min(pauses, key=lambda r: r.total_ns), min(resumes, key=lambda r: r.total_ns)
    checks.figure(f"{label}: first pause GB/s", pauses[0].saved_bytes / pauses[0].total_ns)
    checks.figure(f"{label}: pause GB/s", best.saved_bytes / best.total_ns)
    checks.figure(f"{label}: pause, of the pinned limit", best.saved_bytes / best.total_ns / limits[0])
    checks.figure(f"{label}: pause, copies alone GB/s", best.saved_bytes / best.copy_ns)
    checks.figure(f"{label}: pause, besides copies ms", (best.total_ns - best.copy_ns) / 1e6)
    checks.figure(f"{label}: resume GB/s", back_best.copied_bytes / back_best.total_ns)
    checks.figure(f"{label}: resume, of the pinned limit", back_best.copied_bytes / back_best.total_ns / limits[1])
    checks.figure(f"{label}: resume, besides copies ms", (back_best.total_ns - back_best.copy_ns) / 1e6)
    if segment_bytes == 64 * MIB:
        check_background(checks, pool, state, kept)
        check_after_release(checks, pool, state, kept)
        check_streaming(checks, pool, state, kept)
        check_worth(checks, pool, state, kept)
    del state, kept
    pool.close()
    torch.cuda.empty_cache()
    left = device_bytes_used() - before_pool
    checks.that(f"{label}: closing gives everything back", left <= 4 * MIB, f"{left} bytes left")


def check_background(checks: Checks, pool: native.Pool, state: list[torch.Tensor], kept: list[torch.Tensor]) -> None:
    """The first tensor comes back at once; kernels run while the others stream in."""
    pool.pause()
    begin = time.perf_counter()
    report = pool.resume(first=[(state[0].data_ptr(), state[0].numel())], wait=False)
    foreground = time.perf_counter() - begin
    first_is_back = torch.equal(state[0], kept[0])
    left = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    products = 0
    while pool.info().pending_bytes:
        left = left @ left * 1e-2
        torch.cuda.synchronize()
        products += 1
    done = pool.wait(60_000)
    checks.that("background resume: the first range is back at once", first_is_back, f"{report}")
    checks.that(
        "background resume: all bytes are back", all(torch.equal(a, b) for a, b in zip(state, kept, strict=True))
    )
    checks.figure("background resume: foreground ms", foreground * 1e3)
    checks.figure("background resume: whole GB/s", done.copied_bytes / done.total_ns)
    checks.figure("background resume: matrix products meanwhile", products)


def check_streaming(checks: Checks, pool: native.Pool, state: list[torch.Tensor], kept: list[torch.Tensor]) -> None:
    """All but the first tensor streams in behind kernels, right after others left the GPU: how fast, and what it costs."""
    left = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def product_ms(until: float) -> float:
        count, begin = 0, time.perf_counter()
        while time.perf_counter() < until:
            torch.matmul(left, left)
            torch.cuda.synchronize()
            count += 1
        return 1e3 * (time.perf_counter() - begin) / count

    alone = product_ms(time.perf_counter() + 0.2)
    rates, beside, same = [], [], True
    for _ in range(3):
        pool.pause()
        give_back(AWAY_BYTES)
        pool.resume(first=[(state[0].data_ptr(), state[0].numel())], wait=False)
        begin = time.perf_counter()
        pending = pool.info().pending_bytes
        beside.append(product_ms(begin + pending / 60e9))
        pool.wait(60_000)
        rates.append(pending / (time.perf_counter() - begin) / 1e9)
        same = same and all(torch.equal(a, b) for a, b in zip(state, kept, strict=True))
    checks.that("streaming right after others left: all bytes are back", same)
    checks.figure("streaming right after others left: GB/s", sorted(rates)[1])
    checks.figure("a matrix product alone, ms", alone)
    checks.figure("the same behind which state streams in, ms", sorted(beside)[1])


def check_after_release(checks: Checks, pool: native.Pool, state: list[torch.Tensor], kept: list[torch.Tensor]) -> None:
    """As an engine leaves the GPU just before: the driver clears what it gave back with the copy engines."""
    ranges = [(tensor.data_ptr(), tensor.numel()) for tensor in state]
    for way in ("waited for in one piece", "at once"):
        rates, same = [], True
        for _ in range(3):
            pool.pause()
            give_back(AWAY_BYTES)
            report = pool.resume() if way != "at once" else pool.resume(first=ranges, wait=False)
            same = same and all(torch.equal(a, b) for a, b in zip(state, kept, strict=True))
            rates.append(report.copied_bytes / report.total_ns)
        checks.that(f"right after others left, {way}: all bytes are back", same)
        checks.figure(f"right after others left, {way}: resume GB/s", sorted(rates)[1])


def check_worth(checks: Checks, pool: native.Pool, state: list[torch.Tensor], kept: list[torch.Tensor]) -> None:
    """Frozen, zero and discarded ranges, and a part of the memory only."""
    ranges = [(tensor.data_ptr(), tensor.numel()) for tensor in state]
    pool.declare(native.FROZEN, [ranges[1]])
    pool.declare(native.ZERO, [ranges[2]])
    pool.declare(native.DISCARD, [ranges[3]])
    first, _ = pool.pause(), pool.resume()
    second, _ = pool.pause(), pool.resume()
    checks.that(
        "a frozen range is saved once",
        first.clean_bytes == 0 and second.clean_bytes == ranges[1][1] and second.saved_bytes < first.saved_bytes,
        f"{second}",
    )
    checks.that("a frozen range comes back", torch.equal(state[1], kept[1]))
    checks.that("a zero range comes back as zeros", not state[2].any().item())
    checks.that("other ranges come back", all(torch.equal(state[i], kept[i]) for i in (0, 4, 5, 6, 7)))
    pool.verify_frozen(native.EVERYTHING)
    state[1][12345] += 1
    try:
        pool.pause()
        code = "no error"
    except BatonError as error:
        code = error.code
    checks.that("a write to a frozen range is found", code == "FROZEN_CHANGED", code)
    state[1].copy_(kept[1])
    pool.declare(native.ZERO, [])
    pool.declare(native.DISCARD, [])
    for index in (2, 3):
        state[index].copy_(kept[index])
    torch.cuda.synchronize()
    want = 3 * pool.segment_bytes - 1
    used = device_bytes_used()
    part = pool.pause(keep=[ranges[0]], want_bytes=want)
    fell = used - device_bytes_used()
    kept_alive = torch.equal(state[0], kept[0])
    pool.resume()
    checks.that("a pause in part releases what was asked for", part.released_bytes == 3 * pool.segment_bytes == fell)
    checks.that("what is kept stays usable", kept_alive)
    checks.that("a pause in part comes back", all(torch.equal(a, b) for a, b in zip(state, kept, strict=True)))
    pool.declare(native.FROZEN, [])


def check_growth(checks: Checks, fd: int) -> None:
    """40 cycles with changing content: no growth of device memory, no drift of the time."""
    pool = native.Pool(DEVICE, name="growth", exportable=True, segment_bytes=64 * MIB)
    size = GIB
    pool.set_arena(fd, 0, size + MIB)
    state = tensor_at(pool.allocate(size), size)
    pool.pause()
    pool.resume()
    used, times, right = device_bytes_used(), [], True
    for cycle in range(40):
        state.fill_(cycle)
        begin = time.perf_counter()
        pool.pause()
        pool.resume()
        times.append(time.perf_counter() - begin)
        right = right and bool((state[:: 1 << 16] == cycle).all())
    early, late = sorted(times[:20])[10], sorted(times[20:])[10]
    checks.that("40 cycles: content right each time", right)
    checks.that("40 cycles: device memory does not grow", abs(device_bytes_used() - used) <= 2 * MIB)
    checks.figure("40 cycles: later half over earlier half", late / early)
    del state
    pool.close()


def check_out_of_memory(checks: Checks) -> None:
    """A resume without room fails with figures, and succeeds when there is room again."""
    pool = native.Pool(DEVICE, name="tight", exportable=True, segment_bytes=64 * MIB)
    size = 4 * GIB
    arena = arena_fd(64 * MIB)
    pool.set_arena(arena, 0, 64 * MIB)
    os.close(arena)
    address = pool.allocate(size)
    head = tensor_at(address, 4096)
    head.fill_(42)
    torch.cuda.synchronize()
    pool.declare(native.DISCARD, [(address + 4096, size - 4096)])
    pool.pause()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    hog = torch.empty(free - 2 * GIB, dtype=torch.uint8, device="cuda")
    used = device_bytes_used()
    try:
        pool.resume()
        code = "no error"
    except BatonError as error:
        code = error.code
    checks.that("a resume without room is refused", code == "OUT_OF_MEMORY", code)
    checks.that("and leaves nothing behind", abs(device_bytes_used() - used) <= 2 * MIB)
    del hog
    torch.cuda.empty_cache()
    pool.resume()
    checks.that("with room it comes back", bool((head == 42).all()))
    del head
    pool.close()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=int, default=8)
    parser.add_argument("--json")
    wanted = parser.parse_args()
    # What torch loads and makes at first use would look like memory that is left behind.
    warm = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)
    torch.equal(warm @ warm, warm)
    fill(torch.empty(4096, dtype=torch.uint8, device="cuda"), 0)
    native.checksum(DEVICE, np.zeros(0, dtype=native.CHECKSUM_ITEM), 0)
    checks = Checks("pool_check")
    size = wanted.gib * GIB
    checks.run(check_driver, checks)
    limits = pinned_limits()
    checks.figure("pinned limit, device to host GB/s", limits[0])
    checks.figure("pinned limit, host to device GB/s", limits[1])
    fd = arena_fd(size + 64 * MIB)
    for segment_bytes in (64 * MIB, 2 * MIB, 256 * MIB):
        checks.run(check_pause, checks, segment_bytes, size, fd, limits)
    checks.run(check_growth, checks, fd)
    os.close(fd)
    checks.run(check_import, checks, 2 * GIB)
    checks.run(check_copies, checks)
    checks.run(check_checksums, checks)
    checks.run(check_rounding, checks)
    checks.run(check_out_of_memory, checks)
    return checks.end(wanted.json)


if __name__ == "__main__":
    raise SystemExit(main())
