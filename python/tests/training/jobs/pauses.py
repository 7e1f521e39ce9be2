"""Trains every shape twice, as it is and with pauses in between, and reports what both did.

In the paused training every buffer that is called dead is overwritten with NaN while its memory is away.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import common
import deepspeed
import torch
from common import RANK, WORLD, Shape

from baton.training import deepspeed_state
from baton.training.holdings import Role
from baton.training.memory import TrainingMemory

STEPS = 4
SEGMENT_BYTES = int(os.environ["BATON_STANDIN_GRANULARITY"])

SHAPES = {
    2: [
        Shape("zero1", 1),
        Shape("zero2", 2),
        Shape("zero3", 3),
        Shape("zero1-fp32-gradients", 1, fp32_gradients=True),
        Shape("zero2-fp32", 2, dtype="float32", accumulation=1),
        Shape("zero3-fp32-frozen", 3, dtype="float32", frozen_embedding=True, accumulation=3),
        Shape("zero0-fp32", 0, dtype="float32"),
        Shape("zero0", 0),
    ],
    3: [
        Shape("zero1", 1),
        Shape("zero2", 2),
        Shape("zero2-fp32-gradients", 2, fp32_gradients=True),
        Shape("zero3", 3),
        Shape("zero3-default-threshold", 3, threshold=None),
        Shape("zero3-sub-groups", 3, zero={"sub_group_size": 5_000}),
    ],
}


def paused_run(shape: Shape, memory: TrainingMemory) -> dict[str, Any]:
    engine = common.build(shape, memory, model_inside=shape.name != "zero2-fp32")
    found: dict[str, Any] = {"handoffs": [], "outside_at_attach": []}
    memory.attach(engine)
    found["complete_at_attach"] = memory.complete
    found["wrong_place"] = [held.names[0] for held in memory.holdings if not memory.pool.owns(held.address)]

    def handoff(step: int, where: str) -> None:
        holdings = memory.prepare()
        live = deepspeed_state.gradients_live(engine)
        dead_bytes = common.fill_dead_with_nan(memory)
        before = common.pool_stats(memory)
        addresses = {held.key: held.address for held in holdings}
        first = memory.pause("optimizer")
        engine_readable = all(common.readable(address) for address, _ in memory.engine_ranges())
        engine_segments = common.segments(memory, memory.engine_ranges())
        second = memory.pause("all")
        unmapped = [held.names[0] for held in holdings if common.readable(held.address)]
        paused = common.pool_stats(memory)
        # Whoever generates meanwhile uses the memory; nothing of the old content may be needed.
        torch.distributed.barrier()
        memory.resume(wait=step % 2 == 0)
        zeros = common.everything_zero(memory)
        common.fill_dead_with_nan(memory, only_discarded=True)
        found["handoffs"].append(
            {
                "where": where,
                "step": step,
                "live_gradients": live,
                "dead_bytes": dead_bytes,
                "released_bytes": first.released_bytes + second.released_bytes,
                "saved_bytes": first.saved_bytes + second.saved_bytes,
                "reported_dead_bytes": first.dead_bytes + second.dead_bytes,
                "mapped_bytes_before": before.mapped_bytes,
                "mapped_bytes_paused": paused.mapped_bytes,
                "kept_bytes": second.kept_bytes,
                "state_bytes": memory.state_bytes(),
                "outside_bytes": second.outside_bytes,
                "engine_readable": engine_readable,
                "kept_for_engine_bytes": first.kept_bytes,
                "engine_segments_bytes": len(engine_segments) * memory.pool.segment_bytes,
                "still_readable": unmapped,
                "zeros": zeros,
                "same_addresses": all(held.address == addresses[held.key] for held in memory.holdings),
                "frozen_bytes": holdings.bytes_of(Role.FROZEN, Role.REFERENCE),
                "shared_bytes": memory.shared_bytes(),
                "clean_bytes": first.clean_bytes + second.clean_bytes,
            }
        )

    course = common.train(
        engine,
        shape,
        STEPS,
        middle=lambda step: handoff(step, "middle") if step in (1, 2) else None,
        after=lambda step: handoff(step, "boundary"),
    )
    memory.wait()
    found["complete"] = memory.complete
    found["roles"] = {role.value: memory.holdings.bytes_of(role) for role in Role}
    found["moments_by_formula"] = sum(2 * master.numel() * 4 for master in deepspeed_state.masters_of(engine))
    found |= course.as_dict()
    memory.detach()
    engine.destroy()
    return found


def main() -> None:
    deepspeed.init_distributed("gloo")
    wanted = sys.argv[1:]
    shapes = [shape for shape in SHAPES[WORLD] if not wanted or shape.name in wanted]
    # ZeRO-3 replaces torch's linear function in the whole process, and its replacement rounds differently.
    shapes.sort(key=lambda shape: -shape.stage)
    stock: dict[str, Any] = {}
    for shape in shapes:  # before there is any training memory in this process
        engine = common.build(shape, None)
        stock[shape.name] = common.train(engine, shape, STEPS).as_dict()
        engine.destroy()
        del engine
    # As small as the stand-in allows here, so that the stages of a pause can be told apart on a small model.
    memory = TrainingMemory(segment_bytes=SEGMENT_BYTES)
    results = {}
    for shape in shapes:
        results[shape.name] = {"stock": stock[shape.name], "paused": paused_run(shape, memory)}
        if RANK == 0:
            print("done", shape.name, flush=True)
    common.finish(results)


if __name__ == "__main__":
    main()
