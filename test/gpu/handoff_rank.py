"""A rank that hands over many times, with one optimizer step between, and writes down what each handoff was like.

baton run recipe.yaml -- torchrun --nproc_per_node N test/gpu/handoff_rank.py --model FOLDER --out FILE --handoffs 200

Rank 0 writes FILE, every other one a file of its own beside it (FILE.rank1, …).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from baton.bench.gpu.part import simulated
from baton.bench.gpu.ranks import resident_bytes
from support import device_bytes_used
from transformers import AutoConfig, AutoModelForCausalLM

import baton

SEQUENCE, ROWS = 64, 2
#: What the engine is asked for: a few tokens, so that the handoff and not the generation is measured.
PROMPTS, TOKENS = 8, 4


def device() -> str:
    return "cpu" if simulated() else f"cuda:{os.environ['LOCAL_RANK']}"


def synchronize() -> None:
    if not simulated():
        torch.cuda.synchronize()


def build(options: argparse.Namespace) -> Any:
    """A DeepSpeed engine with torch's AdamW over the model's config, with random weights."""
    with baton.training_memory():
        torch.manual_seed(0)
        with torch.device(device()):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(options.model), dtype=torch.bfloat16)
        zero = {"stage": options.zero}
        if simulated():  # DeepSpeed's own buckets are larger than a stand-in GPU
            zero |= {"reduce_bucket_size": 2**18, "allgather_bucket_size": 2**18}
        config = {
            "train_micro_batch_size_per_gpu": ROWS,
            "gradient_clipping": 1.0,
            "zero_optimization": zero,
            "bf16": {"enabled": True},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 2**31,
        }
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=None if simulated() else True)
        return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def step(engine: Any, number: int) -> float:
    """Seconds of one optimizer step."""
    synchronize()
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(0, engine.module.config.vocab_size, (ROWS, SEQUENCE), generator=generator).to(engine.device)
    engine.backward(engine(input_ids=ids, labels=ids, use_cache=False).loss)
    engine.step()
    synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--zero", type=int, default=2)
    parser.add_argument("--handoffs", type=int, default=200)
    options = parser.parse_args()
    deepspeed.init_distributed("gloo" if simulated() else "nccl")
    gpu, rank = int(os.environ["LOCAL_RANK"]), dist.get_rank()
    engine = build(options)
    session = baton.attach(engine)
    memory = session.memory
    sampling = baton.Sampling(n=1, max_tokens=TOKENS, seed=1)
    prompts = [[17 + 3 * i + j for j in range(16)] for i in range(PROMPTS)]
    records: list[dict[str, float]] = []
    for number in range(options.handoffs):
        stepped = step(engine, number)
        began = time.perf_counter()
        with session.rollout() as rollout:
            opened = time.perf_counter()
            rollout.generate(prompts, sampling)
            left = time.perf_counter()
            while_generating = device_bytes_used(gpu)
        returned = time.perf_counter()
        pool = memory.pool.info()
        records.append(
            {
                "stepSeconds": stepped,
                "openSeconds": opened - began,
                "firstTokensSeconds": left - began,
                "returnSeconds": returned - left,
                "generatingBytes": while_generating,
                "trainingBytes": device_bytes_used(gpu),
                "poolSegments": pool.segments,
                "poolLiveBytes": pool.live_bytes,
                "torchReservedBytes": 0 if simulated() else torch.cuda.memory_reserved(),
                "residentBytes": resident_bytes(),
            }
        )
        session.log(number, handoffSeconds=returned - began)
    out = options.out if rank == 0 else options.out.with_name(f"{options.out.name}.rank{rank}")
    out.write_text(json.dumps(records))
    session.finish()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
