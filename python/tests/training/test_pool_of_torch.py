"""Torch tensors in a pool, without DeepSpeed."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest
from standin import MIB, Standin, require_build

START = """
import os, sys, ctypes, json, torch, traceback
from baton.errors import BatonError
from baton.training.memory import TrainingMemory
memory = TrainingMemory(0)
pool = memory.pool
arena = os.memfd_create("arena")
os.ftruncate(arena, 64 << 20)
pool.set_arena(arena, 0, 64 << 20)
def code_of(call):
    try:
        call()
    except BatonError as error:
        return error.code
    return "none"
"""

#: Run one after another in one process, because importing torch takes longer than all of them.
CASES = {
    "content and addresses survive a pause": """
with memory:
    tensors = [torch.randn(size) for size in (1, 3, 1000, 600_000)]
copies, addresses = [t.clone() for t in tensors], [t.data_ptr() for t in tensors]
for _ in range(3):
    assert pool.pause().released_bytes == pool.info().segments * pool.segment_bytes
    assert pool.info().mapped_bytes == 0
    pool.resume()
    assert all(torch.equal(t, c) for t, c in zip(tensors, copies))
    assert [t.data_ptr() for t in tensors] == addresses
""",
    "only what is allocated while it is open is in the pool": """
before = torch.ones(10)
with memory:
    inside = torch.ones(10)
    with memory:
        nested = torch.ones(10)
    still = torch.ones(10)
after = torch.ones(10)
try:
    with memory:
        raise ValueError
except ValueError:
    pass
later = torch.ones(10)
assert [pool.owns(t.data_ptr()) for t in (before, inside, nested, still, after, later)] == [0, 1, 1, 1, 0, 0]
""",
    "threads allocate and free at the same time": """
import threading
broken = []
def work(seed):
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for step in range(200):
        size = int(torch.randint(1, 5000, (1,), generator=generator))
        kept.append((seed * 1000 + step, torch.full((size,), seed * 1000 + step)))
        if len(kept) > 20:
            kept.pop(int(torch.randint(0, 20, (1,), generator=generator)))
        if not all(bool((t == value).all()) for value, t in kept):
            broken.append((seed, step))
with memory:
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
assert broken == []
assert pool.info().live_blocks == 0
pool.trim()
assert pool.info().mapped_bytes == 0
""",
    "a tensor may be freed while it is away": """
with memory:
    one, two = torch.ones(100_000), torch.full((100_000,), 2.0)
pool.pause()
del one
pool.resume()
assert bool((two == 2).all()) and pool.info().live_blocks == 1
""",
    "a storage moves with all its views": """
tensor = torch.arange(1000.0)
view, transposed = tensor[10:20], tensor.view(10, 100).t()
needs_grad = torch.nn.Parameter(tensor)
with memory:
    memory._backend.rehome(tensor.untyped_storage())
assert all(pool.owns(t.data_ptr()) for t in (tensor, view, transposed, needs_grad))
tensor[10] = -1
assert view[0] == -1 and transposed[10, 0] == -1 and needs_grad[10] == -1
memory._backend.rehome(tensor.untyped_storage())
assert not pool.owns(view.data_ptr()) and view[0] == -1 and view[9] == 19
assert pool.info().live_blocks == 0
""",
    "there is one training memory a process": """
assert code_of(lambda: TrainingMemory(0)) == "SECOND_TRAINING_MEMORY"
""",
    "pausing without an engine is an error": """
assert [code_of(memory.pause), code_of(memory.resume)] == ["WRONG_STATE"] * 2
""",
    "a forked child works and does not keep the memory": """
import time
from baton import native
with memory:
    tensor = torch.ones(100_000)
read, write = os.pipe()
child = os.fork()
if child == 0:
    made = torch.ones(1000)  # not in the pool, which the child has not
    del tensor  # frees nothing of the parent's
    os.write(write, b"fine" if made.sum() == 1000 and not pool.owns(made.data_ptr()) else b"wrong")
    time.sleep(60)
    os._exit(0)
try:
    assert os.read(read, 10) == b"fine"
    pool.pause()
    free, total = native.device_memory(0)
    assert free == total
    pool.resume()
    assert int(tensor.sum()) == 100_000
finally:
    os.kill(child, 9)
    os.waitpid(child, 0)
""",
    "a device that is full says so and nothing is lost": """
with memory:
    kept = torch.ones(1 << 20)
    try:
        torch.ones(5 << 20)
    except torch.OutOfMemoryError as error:
        assert "OUT_OF_MEMORY" in str(error), error
    else:
        raise AssertionError("the device has 16 MiB")
    again = torch.ones(1 << 20)
assert int(kept.sum()) == int(again.sum()) == 1 << 20
""",
}

ALL_CASES = """
results = {}
for name, code in json.loads(sys.argv[1]).items():
    with memory:
        pass
    try:
        exec(compile(code, name, "exec"), dict(globals()))
        results[name] = "passed"
    except BaseException:
        results[name] = traceback.format_exc()
    pool.trim()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, str]:
    require_build()
    standin = Standin(tmp_path_factory.mktemp("pool"), device_bytes=16 * MIB)
    done = standin.run([sys.executable, "-c", START + ALL_CASES, json.dumps(CASES)], deadline_seconds=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_that(case, results):
    assert results[case] == "passed", results[case]


def test_whoever_touches_a_paused_tensor_dies_of_sigsegv(standin):
    code = "with memory: tensor = torch.arange(1000)\npool.pause()\nprint('paused', flush=True)\nprint(tensor.sum())"
    done = standin.python(START + code, deadline_seconds=120)
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "paused\n")


def test_without_a_compiler_the_error_says_what_to_install(standin, tmp_path):
    python = f"import sys; sys.path[:0] = {sys.path!r}\n"
    code = python + (
        "from baton.training.build import build_allocator\nfrom baton.errors import BatonError\n"
        "try: build_allocator()\nexcept BatonError as error: print(error.code, error.action)"
    )
    empty = str(tmp_path / "cache")
    done = standin.python(code, BATON_CACHE=empty, PATH="/nonexistent")
    assert done.stdout.startswith("NO_COMPILER Install g++"), done.stderr
    done = standin.python(code, BATON_CACHE=empty, CXX="false")
    assert done.stdout.startswith("COMPILE_FAILED"), done.stderr
    assert [name for name in os.listdir(empty) if name.endswith((".so", ".tmp"))] == []
