"""What the trainer is tried on: ways to train, and generated batches. Needs no process group and no DeepSpeed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extent import ALL
from naive_grpo import Sample, group_advantages
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

import baton.examples
from baton import Completion
from baton.training.grpo.batch import GeneratedBatch
from baton.training.grpo.options import GrpoOptions, options_from

RANKS = 2
VOCABULARY = 16
PROMPTS, GENERATIONS = 4, 4
#: Samples of a rank in one generated batch.
SHARE = PROMPTS * GENERATIONS // RANKS
LONGEST = 7
LORA = {"rank": 3, "alpha": 7.0, "target_modules": ["q_proj", "v_proj", "down_proj"]}


@dataclass(frozen=True)
class Case:
    name: str
    stage: int
    loss: str
    iterations: int
    micro_batch: int
    accumulation: int
    batches: int
    lora: bool = False
    beta: float = 0.0
    clip_high: float | None = None
    cap: float | None = None
    warmup: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    stale: bool = False

    @property
    def micros(self) -> int:
        return SHARE // self.micro_batch

    @property
    def passes(self) -> int:
        return self.micros * self.iterations

    @property
    def steps(self) -> int:
        return self.batches * self.passes // self.accumulation

    @property
    def spans(self) -> bool:
        """Whether an optimizer step begins in one generated batch and ends in another."""
        begins = range(0, self.batches * self.passes, self.accumulation)
        return any(begin // self.passes != (begin + self.accumulation - 1) // self.passes for begin in begins)

    def recipe(self, model: Path | str, **more: Any) -> dict[str, Any]:
        return {
            "model": str(model),
            "output": "unused",
            "data": {"files": ["unused.jsonl"]},
            "rewards": [{"function": "exact_match"}],
            "lora": LORA if self.lora else None,
            "zero_stage": self.stage,
            "dtype": "float32",
            "attention": "eager",
            "batches": self.batches,
            "prompts": PROMPTS,
            "num_generations": GENERATIONS,
            "num_iterations": self.iterations,
            "micro_batch": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "learning_rate": 0.005,
            "weight_decay": self.weight_decay,
            "betas": [0.8, 0.95],
            "warmup_steps": self.warmup,
            "max_grad_norm": self.max_grad_norm,
            "max_completion_tokens": LONGEST,
            "temperature": 0.7,
            "loss": self.loss,
            "clip_high": self.clip_high,
            "beta": self.beta,
            "importance_cap": self.cap,
            "stale": "allow" if self.stale else "error",
            **more,
        }

    def options(self, model: Path | str) -> GrpoOptions:
        options = options_from(self.recipe(model))
        options.check(RANKS)
        return options


# Each stage sees each value at least once; see test_every_stage_sees_every_value.
ALL_CASES = [
    Case("zero1", 1, "grpo", 1, micro_batch=2, accumulation=1, batches=2, cap=1.1),
    Case("zero1-kl", 1, "bnpo", 2, micro_batch=4, accumulation=3, batches=3, beta=0.1, clip_high=0.4),
    Case("zero1-lora", 1, "dr_grpo", 4, micro_batch=4, accumulation=2, batches=1, lora=True),
    Case("zero1-lora-kl", 1, "grpo", 1, micro_batch=4, accumulation=4, batches=6, lora=True, beta=0.2, warmup=2),
    Case("zero2-kl", 2, "bnpo", 2, micro_batch=4, accumulation=2, batches=2, beta=0.1, weight_decay=0.1),
    Case("zero2", 2, "grpo", 4, micro_batch=4, accumulation=3, batches=3, cap=1.5, max_grad_norm=0.05),
    Case("zero2-lora-kl", 2, "dr_grpo", 1, micro_batch=2, accumulation=2, batches=3, lora=True, beta=0.1),
    Case("zero2-lora", 2, "bnpo", 2, micro_batch=4, accumulation=1, batches=1, lora=True, clip_high=0.3),
    Case("zero3", 3, "dr_grpo", 4, micro_batch=4, accumulation=1, batches=1, clip_high=0.1, weight_decay=0.1),
    Case("zero3-kl", 3, "grpo", 2, micro_batch=4, accumulation=3, batches=3, beta=0.1, max_grad_norm=0.05),
    Case("zero3-lora", 3, "bnpo", 1, micro_batch=2, accumulation=2, batches=2, lora=True, cap=1.1),
    Case("zero3-lora-kl", 3, "grpo", 2, micro_batch=4, accumulation=3, batches=3, lora=True, beta=0.1, warmup=1),
]
CASES = [case for case in ALL_CASES if ALL or case.stage > 1]
#: An optimizer step a pass, two passes a batch: mistakes are planted here.
PLAIN = ALL_CASES[4]


def make_model(folder: Path, **changes: Any) -> Path:
    """A random model with the shipped tokenizer. Its matrices are larger than two segments, halves of them too."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    torch.manual_seed(5)
    Qwen2ForCausalLM(Qwen2Config(**sizes | changes)).save_pretrained(folder)
    tiny = Path(baton.examples.__file__).parent / "tiny_model"
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def samples_of(number: int) -> list[Sample]:
    """Generated batch `number`: groups of completions of many lengths, by rank.

    There is a failed sample, a completion without tokens, a group of equal rewards, and one that almost all failed.
    """
    chance = np.random.default_rng(100 + number)
    nan = math.nan
    rewards = [[1.0, 0.0, nan, 0.3], [1.0, 1.0, 1.0, 1.0], [0.0, 0.5, 1.0, 0.0], [nan, nan, 1.0, 0.2]]
    samples: list[Sample] = []
    for group in chance.permutation(PROMPTS):
        prompt = chance.integers(0, VOCABULARY, chance.integers(1, 6)).tolist()
        found = []
        for reward in rewards[group]:
            tokens = chance.integers(0, VOCABULARY, chance.integers(1, LONGEST + 1)).tolist()
            # Weights of these completions are below and above any cap.
            found.append(Sample(prompt, tokens, chance.normal(-2.5, 0.7, len(tokens)).tolist(), reward))
        if group == 2:
            found[1].tokens, found[1].engine = [], []
        for sample, advantage in zip(found, group_advantages(rewards[group]), strict=True):
            sample.advantage = advantage
        samples += found
    return samples


def as_batch(samples: list[Sample], rank: int, epoch: int) -> GeneratedBatch:
    """Rank `rank`'s part, as a rollout would give it to the trainer."""
    mine = samples[rank * SHARE : (rank + 1) * SHARE]
    completions = [
        Completion(
            prompt=i // GENERATIONS,
            sample=i % GENERATIONS,
            tokens=np.array(sample.tokens, dtype=np.uint32),
            logprobs=np.array(sample.engine, dtype=np.float32),
            finish="stop",
            weight_epoch=epoch,
        )
        for i, sample in enumerate(mine)
    ]
    advantages = torch.tensor([sample.advantage for sample in mine])
    trained = torch.tensor([not math.isnan(sample.reward) for sample in mine])
    return GeneratedBatch([sample.prompt for sample in mine[::GENERATIONS]], completions, advantages, trained, epoch)
