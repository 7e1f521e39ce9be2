"""How fast a GPU fetches from the host right after memory of it has been given back, and for how long that matters.

    clearing_costs.py [--given 8 24 48 68] [--streams 1 2 4 8]

The driver clears memory that is given back, with the GPU's copy engines. In GB/s: 12 GiB that are fetched in pieces of
64 MiB right afterwards, by so many streams; of one stream also by time. Then what a matrix product of 8192 costs
meanwhile. Explains why native/pool/segment_memory.h has two ways to bring bytes back.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from support import GIB, MIB, give_back, gpu_and_driver

PIECE = 64 * MIB
FETCHED = 12 * GIB
BUCKET_SECONDS = 0.05
TIMES = 3


class Fetch:
    def __init__(self) -> None:
        self.host = torch.empty(FETCHED, dtype=torch.uint8, pin_memory=True).fill_(7)
        self.device = torch.empty(FETCHED, dtype=torch.uint8, device="cuda")
        self.streams = [torch.cuda.Stream() for _ in range(8)]

    def start(self, streams: int) -> list[torch.cuda.Event]:
        """An event for each piece, in order."""
        events = []
        for number, at in enumerate(range(0, FETCHED, PIECE)):
            with torch.cuda.stream(self.streams[number % streams]):
                self.device[at : at + PIECE].copy_(self.host[at : at + PIECE], non_blocking=True)
                events.append(torch.cuda.Event())
                events[-1].record()
        return events


def rates(fetch: Fetch, streams: int) -> tuple[float, list[float]]:
    """GB/s of all, and of each bucket of time, by the host's clock: an event that says when all began can be late itself."""
    began = time.perf_counter()
    waiting = fetch.start(streams)
    done = []
    while waiting:
        now = time.perf_counter() - began
        there = [event for event in waiting if event.query()]
        done += [now] * len(there)
        waiting = [event for event in waiting if event not in there]
    buckets = [0] * (int(done[-1] / BUCKET_SECONDS) + 1)
    for at in done:
        buckets[int(at / BUCKET_SECONDS)] += PIECE
    whole = buckets[:-1] if len(buckets) > 1 else buckets
    return FETCHED / done[-1] / 1e9, [size / BUCKET_SECONDS / 1e9 for size in whole]


def product_ms(left: torch.Tensor, fetch: Fetch | None, given: int) -> Iterator[float]:
    """Of each try: a product's milliseconds while everything is fetched (or without that, for a third of a second)."""
    for _ in range(TIMES):
        give_back(given)
        events = [] if fetch is None else fetch.start(2)
        count, began = 0, time.perf_counter()
        while (not events[-1].query()) if events else time.perf_counter() - began < 0.3:
            torch.matmul(left, left)
            torch.cuda.current_stream().synchronize()
            count += 1
        yield 1e3 * (time.perf_counter() - began) / max(count, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--given", type=int, nargs="+", default=[0, 8, 24, 48], help="GiB given back before")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8], choices=range(1, 9))
    options = parser.parse_args()
    print(f"{gpu_and_driver()}, torch {torch.__version__}")
    fetch = Fetch()
    for given in options.given:
        for streams in options.streams:
            found = []
            for _ in range(TIMES):
                give_back(given * GIB)
                found.append(rates(fetch, streams))
            whole, by_time = sorted(found)[TIMES // 2]
            curve = "" if streams > 1 else "  by 50 ms: " + " ".join(f"{rate:.0f}" for rate in by_time)
            print(f"{given:3} GiB given back, {streams} streams: {whole:.1f} GB/s{curve}", flush=True)
    left = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for what, other, given in (
        ("alone", None, 0),
        ("after memory was given back", None, max(options.given)),
        ("while bytes are fetched", fetch, 0),
        ("while bytes are fetched, after memory was given back", fetch, max(options.given)),
    ):
        times = sorted(product_ms(left, other, given * GIB))
        print(f"a matrix product {what}: {times[TIMES // 2]:.2f} ms", flush=True)


if __name__ == "__main__":
    main()
