"""One client of the barrier benchmark: the product's own connection and frames.

    python -m baton.bench.barrier_client INDEX WORLD ROUNDS WARM_UP_ROUNDS    (with the environment of a Baton client)

A round is what a rank does at a handoff: `arrive`, then wait until the controller has heard of all ranks and says
`opened`. Prints one JSON line: {"seconds": [one value a round]}.
"""

from __future__ import annotations

import json
import sys
import time

from baton.connection import Connection
from baton.protocol.messages import Arrive, Opened


def main(index: int, world: int, rounds: int, warm_up_rounds: int) -> None:
    """Takes part in `rounds` barriers after a warm-up."""
    connection = Connection.open("rank", index, gpu=index, local_rank=index, world_size=world, local_world_size=world)
    taken: list[float] = []
    for epoch in range(warm_up_rounds + rounds):
        start = time.perf_counter()
        connection.send(Arrive(epoch=epoch))
        connection.expect(Opened)
        taken.append(time.perf_counter() - start)
    print(json.dumps({"seconds": taken[warm_up_rounds:]}), flush=True)
    connection.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]))
