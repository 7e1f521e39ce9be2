"""What the engines are asked: problems as tokens, and which of them belong to which generated batch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from baton.errors import BatonError
from baton.problems.prompts import prompt_tokens
from baton.training.grpo.options import GrpoOptions
from baton.training.grpo.problems import NAMES, Problem, columns_of, load_held_out, load_problems

__all__ = ["Order", "Problem", "TokenizedProblem", "columns_of", "load_held_out", "load_problems", "tokenize"]


@dataclass(frozen=True)
class TokenizedProblem:
    prompt_token_ids: list[int]
    problem: Problem


@dataclass(frozen=True)
class Order:
    """Which of `count` problems are in generated batch 0, 1, 2, ..., each of `per_batch` problems.

    A function of `seed` alone, so a resumed run goes on where it was. All problems are used once, in a new order each
    time, before any is used again: an epoch may end within a batch, which then takes the rest from the next epoch.
    """

    count: int
    per_batch: int
    seed: int

    def batch(self, number: int) -> list[int]:
        """Positions of the problems of generated batch `number`, from 0. One may be there twice where an epoch ends."""
        problems: list[int] = []
        position, end = number * self.per_batch, (number + 1) * self.per_batch
        while position < end:
            epoch, first = divmod(position, self.count)
            part = self._epoch(epoch)[first : first + end - position]
            problems += part
            position += len(part)
        return problems

    def share(self, batch: int, rank: int, ranks: int) -> list[int]:
        """Rank `rank`'s problems of a batch: equal and consecutive parts. Raises BatonError BATCH_NOT_DIVISIBLE."""
        size, rest = divmod(self.per_batch, ranks)
        if rest:
            raise BatonError(
                "BATCH_NOT_DIVISIBLE",
                "A batch of problems cannot be shared equally.",
                expected=f"a multiple of {ranks} ranks",
                found=f"{self.per_batch} problems",
                action="Change grpo.prompts or the number of ranks.",
            )
        return self.batch(batch)[rank * size : (rank + 1) * size]

    def _epoch(self, epoch: int) -> list[int]:
        # Raw draws and a stable sort: numpy promises that these stay the same in later versions, of a permutation not.
        draws = np.random.PCG64([self.seed, epoch]).random_raw(self.count)
        return np.argsort(draws, kind="stable").tolist()


def _say(text: str) -> None:
    print(f"baton: {text}", file=sys.stderr, flush=True)


def tokenize(
    problems: Sequence[Problem],
    tokenizer: Any,
    options: GrpoOptions,
    model_tokens: int | None = None,
    say: Callable[[str], None] = _say,
) -> list[TokenizedProblem]:
    """The problems with the tokens of their prompts, in their order, without those that were dropped as too long.

    `model_tokens`: positions of the model, for prompt and completion together. `say` is told how many were dropped.
    Raises BatonError NO_CHAT_TEMPLATE, CHAT_TEMPLATE_FAILED, DATA_BAD_PROMPT, PROMPT_TOO_LONG, DATA_EMPTY or
    BAD_OPTIONS.
    """
    longest, because = _longest(options, model_tokens)
    tokenized = [
        TokenizedProblem(prompt_tokens(each.prompt, tokenizer, options.data.chat, each.place, NAMES), each)
        for each in problems
    ]
    too_long = [each for each in tokenized if len(each.prompt_token_ids) > longest]
    if not too_long:
        return tokenized
    first, most = too_long[0], max(len(each.prompt_token_ids) for each in too_long)
    if options.data.too_long == "error":
        raise BatonError(
            "PROMPT_TOO_LONG",
            f"The prompt at {first.problem.place} has too many tokens.",
            expected=f"at most {longest} tokens ({because})",
            found=f"{len(first.prompt_token_ids)} tokens; {len(too_long)} of {len(problems)} prompts are too long, "
            f"the longest has {most}",
            action="Raise that limit, or leave such problems out with grpo.data.too_long: drop.",
        )
    kept = [each for each in tokenized if len(each.prompt_token_ids) <= longest]
    if not kept:
        raise BatonError(
            "DATA_EMPTY",
            "Every prompt is too long; no problem is left.",
            expected=f"prompts of at most {longest} tokens ({because})",
            found=f"{min(len(each.prompt_token_ids) for each in too_long)} to {most} tokens",
            action="Raise that limit, or use other data.",
        )
    say(f"{len(too_long)} of {len(problems)} problems dropped: more than {longest} tokens ({because}), up to {most}.")
    return kept


def _longest(options: GrpoOptions, model_tokens: int | None) -> tuple[int, str]:
    """Tokens that a prompt may have, and the reason."""
    limits: list[tuple[int, str]] = []
    if model_tokens is not None:
        room = model_tokens - options.max_completion_tokens
        if room < 1:
            raise BatonError(
                "BAD_OPTIONS",
                "grpo.max_completion_tokens: the model has no room for a prompt beside such a completion.",
                expected=f"less than the model's {model_tokens} positions",
                found=str(options.max_completion_tokens),
                action="Lower grpo.max_completion_tokens.",
            )
        limits.append((room, f"{model_tokens} positions less {options.max_completion_tokens} of the completion"))
    if options.max_prompt_tokens is not None:
        limits.append((options.max_prompt_tokens, "grpo.max_prompt_tokens"))
    return min(limits, default=(sys.maxsize, "no limit"))
