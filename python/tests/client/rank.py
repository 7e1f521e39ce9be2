"""A rank with DeepSpeed on one stand-in GPU, for the tests that play its controller."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import baton

STAGE = int(sys.argv[1])
OUT = Path(os.environ["JOB_OUT"])
PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5]]


def main() -> None:
    deepspeed.init_distributed("gloo")
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        "qwen2",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=True,
    )
    with baton.training_memory(segment_bytes=None if "by-size" in sys.argv else 65536):
        policy = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
        engine, *_ = deepspeed.initialize(
            model=policy,
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_clipping": 1.0,
                "zero_optimization": {
                    "stage": STAGE,
                    "reduce_bucket_size": 10_000,
                    **({"stage3_param_persistence_threshold": 0} if STAGE == 3 else {}),
                },
                "zero_allow_untested_optimizer": True,
            },
        )
    if "unattached" in sys.argv:
        sys.exit(0)
    session = baton.attach(engine)
    if "unfinished" in sys.argv:
        sys.exit(0)
    write("answers", answers(engine))
    weights = {}
    module: Any = engine.module
    for name, parameter in module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=STAGE == 3):
            weights[name] = parameter.detach().flatten().tolist()
    write("weights", weights)

    sampling = baton.Sampling(max_tokens=4, n=2, temperature=1.0, seed=3)
    losses: list[float] = []
    for step in range(3):
        if step == 1:
            write("answers", answers(engine))
        with session.rollout() as rollout:
            if "read" in sys.argv:
                next(policy.parameters()).sum()  # the line that the log must have
            if "illegal" in sys.argv:  # what the same comes to on a GPU
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
            completions = rollout.generate(PROMPTS if step < 2 else [], sampling)
            more = rollout.generate([], sampling) if step == 0 else []
        write(
            f"rollout{step}",
            {
                "completions": [
                    [c.prompt, c.sample, c.tokens.tolist(), c.logprobs.tolist(), c.finish, c.weight_epoch]
                    for c in completions
                ],
                "more": len(more),
                "epoch": rollout.weight_epoch,
            },
        )
        ids = torch.tensor([PROMPTS[1]])
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
        session.log(step=step, loss=loss.item())
    write("losses", losses)
    if "raise" in sys.argv:
        raise RuntimeError("the script has a mistake")
    session.finish()


def answers(engine: Any) -> list[dict[str, Any]]:
    """What a right engine could answer: some tokens, with the policy's own logprobs."""
    made = []
    for prompt in PROMPTS:
        for sample in range(2):
            tokens = [(prompt[-1] + sample + position) % 64 for position in range(1 + sample * 3)]
            with torch.no_grad():
                logits = engine.module(input_ids=torch.tensor([prompt + tokens])).logits[0]
            logprobs = logits.float().log_softmax(-1)
            rows = range(len(prompt) - 1, len(prompt) + len(tokens) - 1)
            made.append(
                {"tokens": tokens, "logprobs": [logprobs[row, t].item() for row, t in zip(rows, tokens, strict=True)]}
            )
    return made


def write(name: str, value: Any) -> None:
    """Appears whole, for the test that waits for it."""
    temporary = OUT / f".{name}"
    temporary.write_text(json.dumps(value))
    temporary.rename(OUT / f"{name}.json")


if __name__ == "__main__":
    main()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)
