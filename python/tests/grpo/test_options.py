"""Options are read strictly, and what does not come out even is refused."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import error_of, options, recipe

from baton.training.grpo.options import (
    DataOptions,
    GrpoOptions,
    LoraOptions,
    RewardOptions,
    describe,
    options_from,
)


def test_a_whole_recipe() -> None:
    read = options(
        data={"columns": {"prompt": "question"}, "chat": True, "limit": 10, "too_long": "drop"},
        rewards=[
            {"function": "math_verify", "weight": 2},
            {"function": "mine.py:short", "name": "brief", "arguments": {"most": 20}},
        ],
        lora={"rank": 16, "target_modules": ["q_proj", "v_proj"]},
        zero_stage=3,
        betas=[0.9, 0.95],
        beta=0.04,
        clip_high=0.28,
        importance_cap=2,
    )
    assert read.data == DataOptions(("train.jsonl",), {"prompt": "question"}, chat=True, limit=10, too_long="drop")
    assert read.rewards == (
        RewardOptions("math_verify", 2.0),
        RewardOptions("mine.py:short", name="brief", arguments={"most": 20}),
    )
    assert read.lora == LoraOptions(16, target_modules=("q_proj", "v_proj"))
    assert (read.zero_stage, read.betas, read.beta, read.clip_high) == (3, (0.9, 0.95), 0.04, 0.28)
    assert isinstance(read.importance_cap, float)
    assert options().lora is None


@pytest.mark.parametrize(
    ("changes", "path", "said"),
    [
        ({"lerning_rate": 1}, "grpo.lerning_rate:", "learning_rate"),
        ({"numGenerations": 4}, "grpo.numGenerations:", "num_generations"),
        ({"data": {"sytem": "x"}}, "grpo.data.sytem:", "system"),
        ({"rewards": [{"function": "f"}, {"function": "g", "weigth": 1}]}, "grpo.rewards[1].weigth:", "weight"),
        ({"lora": {"rank": 1, "alhpa": 1}}, "grpo.lora.alhpa:", "alpha"),
        ({"lora": {"alpha": 1}}, "grpo.lora.rank:", "whole number >= 1"),
        ({"data": {"files": "a.jsonl"}}, "grpo.data.files:", "a list"),
        ({"data": {"files": []}}, "grpo.data.files:", "length >= 1"),
        ({"data": {"files": ["a", 1]}}, "grpo.data.files[1]:", "a text"),
        ({"data": {"chat": "yes"}}, "grpo.data.chat:", "auto | true | false"),
        ({"rewards": []}, "grpo.rewards:", "length >= 1"),
        ({"rewards": [{"function": "f", "weight": "1"}]}, "grpo.rewards[0].weight:", "a number"),
        ({"rewards": [{"function": "f", "weight": math.inf}]}, "grpo.rewards[0].weight:", "finite"),
        ({"rewards": [{"function": "f", "weight": 0}]}, "grpo.rewards:", "not 0"),
        ({"rewards": [{"function": "a:f"}, {"function": "b.py:f"}]}, "grpo.rewards[1].name:", "of its own"),
        ({"model": ""}, "grpo.model:", "length >= 1"),
        ({"zero_stage": 4}, "grpo.zero_stage:", "1 | 2 | 3"),
        ({"loss": "grop"}, "grpo.loss:", "grpo | dr_grpo | bnpo"),
        ({"lora": {"rank": 1, "target_modules": "q_proj"}}, "grpo.lora.target_modules:", "list of text | all-linear"),
        ({"prompts": True}, "grpo.prompts:", "a whole number"),
        ({"prompts": 1.5}, "grpo.prompts:", "a whole number"),
        ({"num_generations": 1}, "grpo.num_generations:", ">= 2"),
        ({"num_iterations": 0}, "grpo.num_iterations:", ">= 1"),
        ({"temperature": 0}, "grpo.temperature:", "> 0"),
        ({"top_p": 1.1}, "grpo.top_p:", "<= 1"),
        ({"clip": 1}, "grpo.clip:", "< 1"),
        ({"clip": math.nan}, "grpo.clip:", "> 0"),
        ({"learning_rate": math.inf}, "grpo.learning_rate:", "finite"),
        ({"beta": -0.1}, "grpo.beta:", ">= 0"),
        ({"betas": [0.9, 1]}, "grpo.betas[1]:", "< 1"),
        ({"betas": [0.9]}, "grpo.betas:", "length 2"),
        ({"importance_cap": 0.5}, "grpo.importance_cap:", ">= 1"),
        ({"seed": -1}, "grpo.seed:", ">= 0"),
        ({"evaluate_every": 5}, "grpo.evaluate_every:", "held_out"),
        ({"solved_by": "exact"}, "grpo.solved_by:", "exact_match"),
        ({"held_out_samples": 2}, "grpo.held_out_samples:", "held_out_temperature"),
        ({"data": {"system": "Be brief.", "chat": False}}, "grpo.data.system:", "chat"),
    ],
)
def test_what_makes_no_sense_is_named(changes: dict[str, Any], path: str, said: str) -> None:
    error = error_of(lambda: options(**changes), "BAD_OPTIONS")
    assert error.message.startswith(path)
    assert said in error.expected


def test_what_is_missing_is_named() -> None:
    without = {key: value for key, value in recipe().items() if key != "model"}
    assert error_of(lambda: options_from(without), "BAD_OPTIONS").message.startswith("grpo.model:")
    bare = recipe() | {"data": {}}
    assert error_of(lambda: options_from(bare), "BAD_OPTIONS").message.startswith("grpo.data.files:")
    error_of(lambda: options_from([1]), "BAD_OPTIONS")  # type: ignore[arg-type]


def test_an_error_shows_what_stands_there() -> None:
    assert error_of(lambda: options(lora={"rank": "eight"}), "BAD_OPTIONS").found == "'eight'"


def test_every_option_is_explained() -> None:
    text = describe()
    for kind, path in (
        (GrpoOptions, "grpo"),
        (DataOptions, "grpo.data"),
        (RewardOptions, "grpo.rewards[i]"),
        (LoraOptions, "grpo.lora"),
    ):
        for field in fields(kind):
            assert field.metadata["help"]
            assert f"\n{path}.{field.name}: " in "\n" + text
    assert "grpo.num_generations: whole number >= 2; default 8" in text
    assert "grpo.model: text; required" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("changes", "ranks", "named"),
    [
        ({"prompts": 10}, 4, "grpo.prompts"),
        ({"prompts": 2}, 4, "grpo.prompts"),
        ({"prompts": 8, "num_generations": 3, "micro_batch": 4}, 4, "grpo.micro_batch"),
        ({"prompts": 8, "num_generations": 4, "micro_batch": 64}, 4, "grpo.micro_batch"),
        ({"batches": 3, "prompts": 4, "num_generations": 4, "micro_batch": 4, "gradient_accumulation_steps": 2}, 4,
         "grpo.gradient_accumulation_steps"),
    ],
)  # fmt: skip
def test_uneven_batches_are_refused(changes: dict[str, Any], ranks: int, named: str) -> None:
    assert named in error_of(lambda: options(**changes).check(ranks), "BATCH_NOT_DIVISIBLE").message


def test_an_accumulation_may_span_generated_batches() -> None:
    spanning = options(batches=4, prompts=4, num_generations=4, micro_batch=4, gradient_accumulation_steps=2)
    spanning.check(4)
    assert spanning.steps_per_generation(4) == 1


@given(*(st.integers(1, 12) for _ in range(6)))
@settings(max_examples=300, deadline=None)
def test_what_passes_the_check_uses_every_sample(
    ranks: int, prompts: int, generations: int, micro_batch: int, accumulation: int, iterations: int
) -> None:
    each = options(
        batches=6,
        prompts=prompts,
        num_generations=generations + 1,
        micro_batch=micro_batch,
        gradient_accumulation_steps=accumulation,
        num_iterations=iterations,
    )
    steps = each.steps_per_generation(ranks)
    even = steps * micro_batch * ranks == prompts * (generations + 1) and prompts % ranks == 0
    even = even and 6 * iterations * steps % accumulation == 0
    if even:
        each.check(ranks)
    else:
        error_of(lambda: each.check(ranks), "BATCH_NOT_DIVISIBLE")
