"""The two functions that torch.cuda's pluggable allocator calls, on a stand-in GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from standin import MIB, Standin, require_build

CODE = """
import ctypes
from baton import native
from baton.errors import BatonError
pool = native.Pool(0, name="torch", segment_bytes=2 << 20)
library = native.library()
malloc, free = library.baton_torch_cuda_malloc, library.baton_torch_cuda_free
malloc.argtypes, malloc.restype = [ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
free.argtypes, free.restype = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p], None
native.check(library.baton_torch_cuda_install(pool.handle))
try:
    native.check(library.baton_torch_cuda_install(pool.handle))
except BatonError as error:
    print(error.code)
block = malloc(3 << 20, 0, None)
print(pool.owns(block), pool.info().live_bytes >> 20, block % 512)
print(malloc(0, 0, None), malloc(1 << 30, 0, None), b"OUT_OF" in library.baton_last_error())
free(None, 0, 0, None)
free(block, 3 << 20, 0, None)
print(pool.info().live_blocks, pool.trim() >> 20)
"""


@pytest.fixture
def standin(tmp_path: Path) -> Standin:
    require_build()
    return Standin(tmp_path, device_bytes=64 * MIB)


def test_blocks_come_from_the_pool_and_go_back(standin: Standin) -> None:
    done = standin.python(CODE)
    assert done.returncode == 0, done.stderr
    # A null pointer, printed as None, is what tells torch that memory is out.
    assert done.stdout.splitlines() == ["SECOND_TRAINING_MEMORY", "True 3 0", "None None True", "0 4"]
