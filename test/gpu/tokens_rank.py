"""A rank that loads a checkpoint, lets the engines say what they would greedily, and writes it down.

baton run recipe.yaml -- torchrun --nproc_per_node N test/gpu/tokens_rank.py --model FOLDER --zero 3 --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from baton.bench.gpu.part import simulated
from transformers import AutoModelForCausalLM
from transformers.integrations.deepspeed import HfDeepSpeedConfig

import baton

PROMPTS = [[(7 * i + 13 * j + 5) % 500 + 10 for j in range(4 + 3 * i)] for i in range(8)]
TOKENS = 24


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--zero", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    deepspeed.init_distributed("gloo" if simulated() else "nccl")
    if not simulated():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    zero = {"stage": options.zero}
    if simulated():  # DeepSpeed's own buckets are larger than a stand-in GPU
        zero |= {"reduce_bucket_size": 2**18, "allgather_bucket_size": 2**18}
    if options.zero == 3:
        zero["stage3_param_persistence_threshold"] = 0
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": options.dtype == "bfloat16"},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    with baton.training_memory():
        partitioned = HfDeepSpeedConfig(config) if options.zero == 3 else None
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
        engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    del partitioned
    session = baton.attach(engine)
    said = []
    for _ in range(2):
        with session.rollout() as rollout:
            completions = rollout.generate(PROMPTS, baton.Sampling(n=1, max_tokens=TOKENS, temperature=0.0, seed=1))
            said.append([completion.tokens.tolist() for completion in completions])
        ids = torch.tensor([PROMPTS[-1]], device=engine.device)
        engine.backward(engine(input_ids=ids, labels=ids, use_cache=False).loss)
        engine.step()  # by nothing, so the second rollout must say the same
    (options.out / f"tokens-{dist.get_rank()}.json").write_text(json.dumps(said))
    session.finish()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
