"""Makes of a run what a dry run does: the same ranks, groups and passes with a small model and few problems.

    python -m baton.training.grpo.dry_run --config ./my-model --out /tmp/small --folder . --ranks 8 < grpo.json

Reads the `grpo` part of a recipe, which must be right for the real run, and answers with a line of JSON: the options
of the dry run, what was made smaller, what is as in the recipe, and what else is to be known.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from baton.errors import BatonError
from baton.training.grpo.data import tokenize
from baton.training.grpo.dry_run_data import StandInData, cut, problems_of
from baton.training.grpo.options import GrpoOptions, RewardOptions, options_from
from baton.training.grpo.reward_functions import load_reward
from baton.training.grpo.shrink import byte_tokenizer, shrink

COMPLETION_TOKENS = 16
#: Two batches move weights of 0.1 in bfloat16, whose steps there are 0.0005.
LEARNING_RATE = 2e-3
HELD_OUT_PROBLEMS = 8
#: Random weights earn nothing of the recipe's functions, and equal rewards make no gradient.
SPREAD = f"{__name__}:spread"


@dataclass
class Plan:
    """What a dry run is: options for the trainer, and what to say of it."""

    options: dict[str, Any]
    model_length: int
    own_data: bool
    changes: list[tuple[str, Any, Any]] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def change(self, name: str, value: Any, before: Any) -> None:
        self.options[name] = value
        if value != before:
            self.changes.append((f"grpo.{name}", before, value))


def spread(completions: list[str]) -> list[float]:
    """A reward from 0 to 1 that depends on the text and on nothing else, and differs from text to text."""
    return [zlib.crc32(text.encode()) / 2**32 for text in completions]


def plan(section: Mapping[str, Any], config: Path, out: Path, folder: Path, ranks: int) -> Plan:
    """Writes model and problems of the dry run into `out`.

    `folder` is the recipe's. Raises BatonError of whatever the real run would be refused for, as far as the recipe, the
    data and the shape of the model tell.
    """
    real = options_from(section)
    real.check(ranks)
    small = shrink(config, out / "model")
    data, stand_in = problems_of(real, folder)
    rewards, notes = _rewards(real, folder, data.columns, stand_in)

    plan = Plan(dict(section), 0, stand_in is None, list(small.changes), list(small.kept), notes)
    if stand_in is not None:
        plan.notes.insert(0, f"{stand_in.missing} is not there: little sums stand in for its problems")
    plan.options |= {"model": str(out / "model"), "resume": None, "max_prompt_tokens": None, "rewards": rewards}
    if real.attention == "flash_attention_2":
        plan.change("attention", "sdpa", real.attention)
    _shrink_batches(plan, real, ranks)
    plan.change("max_completion_tokens", min(real.max_completion_tokens, COMPLETION_TOKENS), real.max_completion_tokens)
    plan.change("learning_rate", LEARNING_RATE, real.learning_rate)
    if real.evaluate_every is not None:
        plan.change("evaluate_every", 1, real.evaluate_every)
    if real.checkpoint_every is not None:
        plan.change("checkpoint_every", 1, real.checkpoint_every)

    count = plan.options["batches"] * plan.options["prompts"]
    train = data.write(out / "problems.jsonl", data.problems[:count])
    plan.options["data"] = {"files": [str(train)], "chat": "auto" if real.data.chat == "auto" else real.data.chat}
    plan.changes.append(("problems", len(data.problems), min(count, len(data.problems))))
    if real.held_out is not None:
        held_out = data.held_out[:HELD_OUT_PROBLEMS]
        plan.options["held_out"] = str(data.write(out / "held-out.jsonl", held_out))
        plan.options["held_out_limit"] = None
        plan.changes.append(("held-out problems", len(data.held_out), len(held_out)))
    plan.model_length = _longest(plan.options, out) + plan.options["max_completion_tokens"]
    plan.kept.append(_kept(real))
    return plan


def _rewards(
    real: GrpoOptions, folder: Path, columns: list[str], stand_in: StandInData | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """The recipe's functions, which must load and find their columns; sums have not every column."""
    rewards: list[RewardOptions] = []
    notes: list[str] = []
    for options in real.rewards:
        function = load_reward(options, folder)
        try:
            function.check(columns)
        except BatonError as error:
            if stand_in is None:
                raise
            notes.append(f"the reward function {options.label} did not run: sums have no column for it ({error.found})")
            continue
        rewards.append(options)
    names = ", ".join(options.label for options in rewards)
    as_recipe = [_as_written(options, folder) for options in rewards]
    notes.append(
        f"rewards: {names or 'none of the recipe'}, and a random one, as the answers of random weights are never right"
    )
    return [*as_recipe, {"function": SPREAD, "name": "dry_run_spread"}], notes


def _as_written(options: RewardOptions, folder: Path) -> dict[str, Any]:
    return {
        "function": options.function,
        "weight": options.weight,
        "name": options.name,
        "arguments": dict(options.arguments),
    }


def _shrink_batches(plan: Plan, real: GrpoOptions, ranks: int) -> None:
    """The least work in which groups, micro batches and accumulation are as in the recipe, in two batches or more."""
    most = real.prompts // ranks
    accumulation = real.gradient_accumulation_steps

    def is_even(batches: int, groups: int) -> bool:
        passes, rest = divmod(groups * real.num_generations, real.micro_batch)
        return rest == 0 and batches * real.num_iterations * passes % accumulation == 0

    choices = product(range(2, 2 * accumulation + 1), range(1, most + 1))
    even = [(batches * groups, batches, groups) for batches, groups in choices if is_even(batches, groups)]
    # The recipe's own batch comes out even in twice as many batches as passes are added up.
    _, batches, groups = min(even, default=(0, 2 * accumulation, most))
    plan.change("batches", batches, real.batches)
    plan.change("prompts", groups * ranks, real.prompts)


def _longest(options: Mapping[str, Any], out: Path) -> int:
    """Tokens of the longest prompt, as the trainer will tokenize it."""
    made = options_from(options)
    tokenizer = byte_tokenizer()
    data, _ = problems_of(made, out)
    tokenized = tokenize([*data.problems, *data.held_out], tokenizer, made)
    return max(len(each.prompt_token_ids) for each in tokenized)


def _kept(real: GrpoOptions) -> str:
    lora = "all parameters" if real.lora is None else f"LoRA of rank {real.lora.rank} ({real.lora.how})"
    kl = "" if real.beta == 0 else f", KL to a reference weighed {real.beta:g}"
    return (
        f"ZeRO-{real.zero_stage}, {lora}, groups of {real.num_generations}, {real.num_iterations} passes over a batch, "
        f"{real.micro_batch} completions a forward pass, {real.gradient_accumulation_steps} passes a step{kl}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="folder with the config.json of the real model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the small model and the problems")
    parser.add_argument("--folder", type=Path, required=True, help="the recipe's folder")
    parser.add_argument("--ranks", type=int, required=True)
    given = parser.parse_args()
    try:
        made = plan(json.load(sys.stdin), given.config, given.out, given.folder, given.ranks)
    except BatonError as error:
        print(json.dumps({"error": error.to_wire()}))
        return 1
    print(
        json.dumps(
            {
                "section": made.options,
                "modelLength": made.model_length,
                "ownData": made.own_data,
                "changes": made.changes,
                "kept": made.kept,
                "notes": made.notes,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
