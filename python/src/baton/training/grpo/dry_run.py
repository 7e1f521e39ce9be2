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
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from baton.errors import BatonError
from baton.training.grpo.data import tokenize
from baton.training.grpo.dry_run_data import RunProblems, problems_of, write
from baton.training.grpo.options import GrpoOptions, RewardOptions, options_from
from baton.training.grpo.reward_functions import load_reward
from baton.training.grpo.shrink import byte_tokenizer, shrink

BATCHES = 2
COMPLETION_TOKENS = 16
#: Two batches move weights of 0.1 in bfloat16, whose steps there are 0.0005.
LEARNING_RATE = 2e-3
HELD_OUT_PROBLEMS = 8
HELD_OUT_SAMPLES = 2
#: Random weights earn nothing of the recipe's functions, and equal rewards make no gradient.
SPREAD = "baton.training.grpo.dry_run:spread"


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
    problems = problems_of(real, folder)
    rewards, notes = _rewards(real, folder, problems)

    plan = Plan(dict(section), 0, problems.missing is None, list(small.changes), [*small.kept, *_kept(real)], notes)
    plan.options |= {"model": str(out / "model"), "resume": None, "max_prompt_tokens": None, "rewards": rewards}
    if real.attention == "flash_attention_2":
        plan.change("attention", "sdpa", real.attention)
    _shrink_batches(plan, real, ranks)
    plan.change("max_completion_tokens", min(real.max_completion_tokens, COMPLETION_TOKENS), real.max_completion_tokens)
    plan.change("learning_rate", LEARNING_RATE, real.learning_rate)
    if real.evaluate_every is not None:
        plan.change("evaluate_every", 1, real.evaluate_every)
    if real.checkpoint_every is not None:
        plan.change("checkpoint_every", _steps_of_batch(plan, ranks), real.checkpoint_every)

    train = problems.train[: plan.options["batches"] * plan.options["prompts"]]
    held_out = problems.held_out[:HELD_OUT_PROBLEMS]
    plan.options["data"] = {"files": [str(write(out / "problems.jsonl", train))], "chat": real.data.chat}
    sums = "" if problems.missing is None else " little sums"
    plan.changes.append(("problems", "the recipe's" if sums else len(problems.train), f"{len(train)}{sums}"))
    if held_out:
        labels = [reward["name"] or reward["function"].rpartition(":")[2] for reward in rewards]
        plan.options["solved_by"] = real.solving if real.solving in labels else None
        plan.change("held_out_samples", min(real.held_out_samples, HELD_OUT_SAMPLES), real.held_out_samples)
        plan.options |= {"held_out": str(write(out / "held-out.jsonl", held_out)), "held_out_limit": None}
        plan.changes.append(
            ("held-out problems", "the recipe's" if sums else len(problems.held_out), f"{len(held_out)}{sums}")
        )
    plan.model_length = _longest(plan.options, out) + plan.options["max_completion_tokens"]
    return plan


def _rewards(real: GrpoOptions, folder: Path, problems: RunProblems) -> tuple[list[dict[str, Any]], list[str]]:
    """The recipe's functions, and notes. Raises BatonError where one does not load or find its columns in the data."""
    rewards: list[RewardOptions] = []
    notes = [] if problems.missing is None else [f"{problems.missing} is not there: little sums took its place"]
    for options in real.rewards:
        try:
            load_reward(options, folder).check(problems.columns)
        except BatonError as error:
            if problems.missing is None or error.code != "REWARD_COLUMN_MISSING":
                raise
            notes.append(f"the reward function {options.label} was left out: sums have no column for it")
            continue
        rewards.append(options)
    names = ", ".join(options.label for options in rewards) or "none of the recipe"
    notes.append(f"rewards: {names}; and a random one, as what random weights write is never right")
    return [*map(asdict, rewards), {"function": SPREAD, "name": "dry_run_spread"}], notes


def _shrink_batches(plan: Plan, real: GrpoOptions, ranks: int) -> None:
    """The least work in which a group, a micro batch and a generated batch mean what they mean in the recipe."""
    most = real.prompts // ranks
    accumulation = real.gradient_accumulation_steps

    def passes(groups: int) -> int | None:
        """Forward passes of a rank for a generated batch, where micro batches come out even."""
        count, rest = divmod(groups * real.num_generations, real.micro_batch)
        return None if rest else count * real.num_iterations

    # Optimizer steps on a batch: two stand for many; fewer than in the recipe is another algorithm.
    steps, spans = divmod(passes(most) or 0, accumulation)

    def is_alike(batches: int, groups: int) -> bool:
        count = passes(groups)
        if count is None:
            return False
        if spans:
            return batches * count % accumulation == 0
        return count % accumulation == 0 and count // accumulation >= min(steps, 2)

    choices = product(range(BATCHES, BATCHES * accumulation + 1), range(1, most + 1))
    alike = [(batches * groups, batches, groups) for batches, groups in choices if is_alike(batches, groups)]
    # The recipe's own batches come out even at the latest when there are as many as passes are added up.
    _, batches, groups = min(alike)
    plan.change("batches", batches, real.batches)
    plan.change("prompts", groups * ranks, real.prompts)


def _steps_of_batch(plan: Plan, ranks: int) -> int:
    """Optimizer steps of a generated batch of the dry run, or 1."""
    made = options_from(plan.options)
    passes = made.steps_per_generation(ranks) * made.num_iterations
    return max(1, passes // made.gradient_accumulation_steps)


def _longest(options: Mapping[str, Any], out: Path) -> int:
    """Tokens of the longest prompt, as the trainer will tokenize it."""
    made = options_from(options)
    tokenizer = byte_tokenizer()
    problems = problems_of(made, out)
    tokenized = tokenize([*problems.train, *problems.held_out], tokenizer, made)
    return max(len(each.prompt_token_ids) for each in tokenized)


def _kept(real: GrpoOptions) -> list[str]:
    trained = "all parameters" if real.lora is None else f"LoRA of rank {real.lora.rank}"
    reference = "a reference model" if real.lora is None else "the model without adapters as reference"
    return [
        f"ZeRO-{real.zero_stage}, {trained}" + ("" if real.beta == 0 else f", {reference}"),
        f"groups of {real.num_generations}, {_count(real.num_iterations, 'pass', 'passes')} over a generated batch",
        f"{_count(real.micro_batch, 'completion')} in a forward pass, "
        f"{_count(real.gradient_accumulation_steps, 'forward pass', 'forward passes')} for an optimizer step",
    ]


def _count(number: int, one: str, more: str | None = None) -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"


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
