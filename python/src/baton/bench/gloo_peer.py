"""The peer of two benchmarks: what a training script has today, torch.distributed over gloo.

    python -m baton.bench.gloo_peer barrier RANK WORLD FILE_STORE ROUNDS WARM_UP_ROUNDS
    python -m baton.bench.gloo_peer gather RANK WORLD FILE_STORE ROUNDS PROMPTS TOKENS

Prints one JSON line: {"seconds": [one value a round]}. A gather round is what trainers that share an
engine do for it: `all_gather_object` of the ranks' prompts, then every rank takes its own slice of the answers
(as many, and as long) out of a second `all_gather_object`.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta

import torch.distributed as dist


def barrier_rounds(rounds: int, warm_up_rounds: int) -> list[float]:
    """Seconds of each barrier, as this rank sees them."""
    for _ in range(warm_up_rounds):
        dist.barrier()
    taken: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        dist.barrier()
        taken.append(time.perf_counter() - start)
    return taken


def gather_rounds(rounds: int, rank: int, world: int, prompts: int, tokens: int) -> list[float]:
    """Seconds of each gather and scatter of `prompts` lists of `tokens` ids a rank, as this rank sees them."""
    mine = [[(rank * prompts + row + column) % 32000 for column in range(tokens)] for row in range(prompts)]
    taken: list[float] = []
    for _ in range(rounds):
        dist.barrier()
        start = time.perf_counter()
        gathered: list[list[list[int]]] = [[] for _ in range(world)]
        dist.all_gather_object(gathered, mine)
        answers: list[list[list[int]]] = [[] for _ in range(world)]
        dist.all_gather_object(answers, gathered[rank])
        if len(answers[rank]) != prompts:
            raise AssertionError(f"gathered {len(answers[rank])} prompts, expected {prompts}")
        taken.append(time.perf_counter() - start)
    return taken


def main(arguments: list[str]) -> None:
    """Runs one rank of the peer."""
    what, rank, world, store, rounds = arguments[0], *map(int, arguments[1:3]), arguments[3], int(arguments[4])
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    if what == "barrier":
        taken = barrier_rounds(rounds, int(arguments[5]))
    elif what == "gather":
        taken = gather_rounds(rounds, rank, world, int(arguments[5]), int(arguments[6]))
    else:
        raise SystemExit(f"unknown benchmark {what!r}, expected barrier or gather")
    print(json.dumps({"seconds": taken}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
