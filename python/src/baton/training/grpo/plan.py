"""What a run is to do, checked as far as it can be without a GPU: before the start, and again by each rank."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.problems.prompts import load_tokenizer, stop_tokens
from baton.training.grpo.checkpoint_folder import Found, find, identity
from baton.training.grpo.data import (
    Order,
    TokenizedProblem,
    load_held_out,
    load_problems,
    tokenize,
)
from baton.training.grpo.deepspeed_config import deepspeed_config
from baton.training.grpo.options import GrpoOptions, options_from
from baton.training.grpo.rewards import Rewards, load_reward
from baton.training.grpo.shape import ModelShape, model_shape


@dataclass(frozen=True)
class Plan:
    """`stop_token_ids`: what ends a completion. `identity`: what a checkpoint must have in common with this run."""

    options: GrpoOptions
    shape: ModelShape
    tokenizer: Any
    problems: list[TokenizedProblem]
    held_out: list[TokenizedProblem]
    rewards: Rewards
    stop_token_ids: tuple[int, ...]
    identity: dict[str, Any]
    checkpoint: Found | None

    @property
    def order(self) -> Order:
        return Order(len(self.problems), self.options.prompts, self.options.seed)


def read_plan(file: Path, ranks: int, say: Callable[[str], None]) -> Plan:
    """From the file that the preflight wrote."""
    written = json.loads(file.read_text())
    return make_plan(written["grpo"], Path(written["folder"]), ranks, written["modelLength"], say)


def make_plan(
    grpo: Mapping[str, Any], folder: Path, ranks: int, model_length: int | None, say: Callable[[str], None]
) -> Plan:
    """`folder`: what paths of data and reward functions are relative to. `model_length`: tokens that an engine can do.

    Raises BatonError: whatever is wrong with options, model, tokenizer, data, reward functions or checkpoint.
    """
    options = options_from(grpo)
    options.check(ranks)
    shape = model_shape(options)
    deepspeed_config(options, shape)
    tokenizer = load_tokenizer(Path(options.model))
    limits = [limit for limit in (shape.positions, model_length) if limit is not None]
    most = min(limits) if limits else None
    problems = tokenize(load_problems(options.data, folder), tokenizer, options, most, say)
    held_out = load_held_out(options, folder)
    tokenized = tokenize(held_out, tokenizer, options, most, say) if held_out else []
    rewards = Rewards(
        [load_reward(each, folder) for each in options.rewards], [each.weight for each in options.rewards]
    )
    for each in (*problems, *tokenized):
        rewards.check(list(each.problem.columns), each.problem.place)
    whose = identity(options, shape, ranks, problems)
    return Plan(
        options=options,
        shape=shape,
        tokenizer=tokenizer,
        problems=problems,
        held_out=tokenized,
        rewards=rewards,
        stop_token_ids=stop_tokens(Path(options.model), tokenizer),
        identity=whose,
        checkpoint=find(options, whose),
    )
