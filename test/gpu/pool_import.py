"""Another process maps segments of a pool by their descriptors, on a real GPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import torch
from baton import native
from support import DEVICE, MIB, Checks, arena_fd, bytes_sum, device_bytes_used, fill, tensor_at

CHILD = """
import os, socket, sys, time
import numpy as np
import torch
sys.path.insert(0, {folder!r})
from support import tensor_at, bytes_sum
from baton import native
torch.zeros(1, device="cuda")
native.checksum(0, np.zeros(0, dtype=native.CHECKSUM_ITEM), 0)
parent = socket.socket(fileno=int(sys.argv[1]))
parent.sendall(b"r")
message, fds, _, _ = socket.recv_fds(parent, 4096, 64)
segment_bytes, offset, size, *numbers = map(int, message.split())
begin = time.perf_counter()
imported = native.Import(0, segment_bytes, numbers, fds)
opened = time.perf_counter() - begin
for fd in fds:
    os.close(fd)
data = tensor_at(imported.base + offset, size)
own = torch.empty(size, dtype=torch.uint8, device="cuda")
total = bytes_sum(native, data.data_ptr(), size)
run = np.zeros(1, dtype=native.RUN)
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
