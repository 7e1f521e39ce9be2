"""The arena grows beside the pool, before the pause that needs it."""

from __future__ import annotations

CODE = """
import os, threading, time
from baton import native
from baton.errors import BatonError
from baton.training.arena import ArenaGrowth, own_arena

MIB = 1 << 20
def until(holds, seconds=20.0):
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "too late"
        time.sleep(0.005)
def grown(pool): return pool.info().arena_bytes
"""


def test_it_follows_what_lives_in_the_pool_and_stops_where_it_is_told(standin):
    code = """
pool = native.Pool(0, name="test", segment_bytes=2 * MIB)
growth = own_arena(pool)
assert grown(pool) == 0
first = pool.allocate(3 * MIB)
until(lambda: grown(pool) >= 3 * MIB)
assert grown(pool) <= 5 * MIB, grown(pool)
pool.allocate(4 * MIB)
until(lambda: grown(pool) >= 7 * MIB)
growth.settle(12 * MIB)
growth.wait()
assert 12 * MIB <= grown(pool) <= 13 * MIB, grown(pool)
pool.allocate(2 * MIB)
time.sleep(0.2)
assert grown(pool) <= 13 * MIB, grown(pool)
assert not any(thread.name == "baton-arena" for thread in threading.enumerate())
print("followed")
"""
    done = standin.python(CODE + code, deadline_seconds=60)
    assert done.stdout == "followed\n", done.stderr


def test_a_pause_takes_the_room_that_it_needs_itself_and_no_more_than_there_can_be(standin):
    code = """
pool = native.Pool(0, name="test", segment_bytes=2 * MIB)
fd = os.memfd_create("arena")
growth = ArenaGrowth(pool, fd, 4 * MIB)
growth.settle(0)
growth.wait()
small = pool.allocate(3 * MIB)
assert grown(pool) == 0
assert pool.pause().saved_bytes == 3 * MIB
assert os.fstat(fd).st_size >= 3 * MIB
pool.resume()
pool.allocate(3 * MIB)
try:
    pool.pause()
except BatonError as error:
    print(error.code)
"""
    done = standin.python(CODE + code, deadline_seconds=60)
    assert done.stdout == "ARENA_TOO_SMALL\n", done.stderr
