"""libbaton's pool, imports, copies and checksums on a real GPU.

    PYTHONPATH=python/src python3 test/gpu/pool_check.py [--gib 8] [--json FILE]

One line a check; figures are measured in the same run as the limit they stand beside. Exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from baton import native
from baton.errors import BatonError
from support import GIB, MIB, Checks, bytes_sum, device_bytes_used, tensor_at

DEVICE = 0
U64 = np.uint64


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


CHILD = """
import socket, sys, ctypes
import torch
sys.path.insert(0, {folder!r})
from support import tensor_at, bytes_sum
from baton import native
torch.zeros(1, device="cuda")
native.checksum(0, __import__("numpy").zeros(0, dtype=native.CHECKSUM_ITEM), 0)
parent = socket.socket(fileno=int(sys.argv[1]))
parent.sendall(b"r")
message, fds, _, _ = socket.recv_fds(parent, 4096, 64)
segment_bytes, offset, size, *numbers = map(int, message.split())
import time, os
begin = time.perf_counter()
imported = native.Import(0, segment_bytes, numbers, fds)
opened = time.perf_counter() - begin
for fd in fds: os.close(fd)
data = tensor_at(imported.base + offset, size)
own = torch.empty(size, dtype=torch.uint8, device="cuda")
total = bytes_sum(native, data.data_ptr(), size)
run = __import__("numpy").zeros(1, dtype=native.RUN)
run["src_offset"], run["dst"], run["bytes"] = offset, own.data_ptr(), size
plan = native.CopyPlan(0, run)
plan.execute([imported.base])
report = plan.execute([imported.base])
copied = bytes_sum(native, own.data_ptr(), size)
parent.sendall(f"{{total}} {{copied}} {{opened}} {{report.total_ns}}".encode())
parent.recv(1)
begin = time.perf_counter()
imported.close()
parent.sendall(str(time.perf_counter() - begin).encode())
parent.recv(1)
plan.close()
os._exit(0)
"""


def check_import(checks: Checks, size: int) -> None:
    """Another process maps the segments by descriptor; what it maps stays until it lets go."""
    pool = native.Pool(DEVICE, name="export", exportable=True, segment_bytes=64 * MIB)
    arena = arena_fd(size + MIB)
    pool.set_arena(arena, 0, size + MIB)
    os.close(arena)
    address = pool.allocate(size)
    state = tensor_at(address, size)
    fill(state, 99)
    torch.cuda.synchronize()
    kept = state.clone()
    mine, theirs = socket.socketpair()
    script = CHILD.format(folder=os.path.dirname(os.path.abspath(__file__)))
    child = subprocess.Popen([sys.executable, "-c", script, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    mine.settimeout(120)
    mine.recv(1)
    begin_offset, end_offset = address - pool.base, address - pool.base + size
    segments = range(begin_offset // pool.segment_bytes, -(-end_offset // pool.segment_bytes))
    begin = time.perf_counter()
    fds = [pool.export(segment) for segment in segments]
    checks.figure("export ms a segment", (time.perf_counter() - begin) * 1e3 / len(fds))
    text = " ".join(map(str, [pool.segment_bytes, address - pool.base, size, *segments]))
    socket.send_fds(mine, [text.encode()], fds)
    for fd in fds:
        os.close(fd)
    total, copied, opened, copy_ns = mine.recv(4096).decode().split()
    want = bytes_sum(native, address, size)
    checks.that("an importer reads the same bytes", int(total) == want, f"{total} and {want}")
    checks.that("its copy kernel copies them", int(copied) == want)
    checks.figure(f"import: open {len(fds)} segments ms", float(opened) * 1e3)
    checks.figure("import: copy kernel from the mapping GB/s", size / int(copy_ns))
    used = device_bytes_used()
    released = pool.pause().released_bytes
    held = used - device_bytes_used()
    mine.sendall(b"c")
    closed = float(mine.recv(4096))
    time.sleep(0.05)
    free = used - device_bytes_used()
    checks.that("memory that an importer maps is held", held == 0, f"{held} bytes fell")
    checks.that("it returns when the importer lets go", free == released, f"{free} of {released} bytes")
    checks.figure("import: close ms", closed * 1e3)
    pool.resume()
    torch.cuda.synchronize()
    checks.that("the exporter resumes afterwards", torch.equal(state, kept))
    mine.sendall(b"x")
    checks.that("the importer ends well", child.wait(60) == 0)
    del state
    pool.close()


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


def element_hashes(first: int, values: np.ndarray[Any, Any]) -> int:
    """The formula of native/copy/checksum.h, in numpy: an implementation of its own."""
    with np.errstate(over="ignore"):
        index = np.arange(first + 1, first + 1 + values.size, dtype=U64)
        z = values.astype(U64) + U64(0x9E3779B97F4A7C15) * index
        z ^= z >> U64(30)
        z *= U64(0xBF58476D1CE4E5B9)
        z ^= z >> U64(27)
        z *= U64(0x94D049BB133111EB)
        z ^= z >> U64(31)
        return int(z.sum(dtype=U64))


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
            items.append((data.data_ptr() + start, first, elements, width, len(items)))
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
    whole = np.array([(big.data_ptr(), 0, size // 2, 2, 0)], dtype=native.CHECKSUM_ITEM)
    native.checksum(DEVICE, whole, 1)
    best = seconds_of(lambda: native.checksum(DEVICE, whole, 1))
    checks.figure("checksum kernel, bf16: GB/s", size / best / 1e9)


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
    torch.zeros(1, device="cuda")
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
    checks.run(check_out_of_memory, checks)
    return checks.end(wanted.json)


if __name__ == "__main__":
    raise SystemExit(main())
