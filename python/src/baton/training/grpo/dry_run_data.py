"""The problems of a dry run: the recipe's own with prompts cut short, or little sums where its files are not there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from baton.examples.arithmetic import held_out_problems, training_problems
from baton.training.grpo.options import GrpoOptions
from baton.training.grpo.problems import Message, Problem, columns_of, load_held_out, load_problems

#: Of a text of a prompt, in UTF-8; a token of the small model each.
TEXT_BYTES = 48
MESSAGES = 3


@dataclass(frozen=True)
class RunProblems:
    """`missing`: the file of the recipe that is not there, for which sums stand in."""

    train: list[Problem]
    held_out: list[Problem]
    missing: Path | None

    @property
    def columns(self) -> list[str]:
        return list(columns_of([*self.train, *self.held_out]))


def problems_of(options: GrpoOptions, folder: Path) -> RunProblems:
    """All problems of a recipe in `folder`. Raises BatonError where a file is there and cannot be used."""
    files = [folder / name for name in (*options.data.files, *([options.held_out] if options.held_out else []))]
    missing = next((file for file in files if not file.exists()), None)
    if missing is None:
        return RunProblems(load_problems(options.data, folder), load_held_out(options, folder), None)
    train = [Problem(each.prompt, {"answer": each.answer}, "sums") for each in training_problems()]
    held_out = [Problem(each.prompt, {"answer": each.answer}, "sums") for each in held_out_problems()]
    return RunProblems(train, held_out if options.held_out else [], missing)


def write(path: Path, problems: Sequence[Problem]) -> Path:
    """A JSONL file with these problems, their prompts cut short and everything else as it is."""
    with path.open("w", encoding="utf-8") as file:
        for problem in problems:
            file.write(json.dumps({**problem.columns, "prompt": cut(problem.prompt)}) + "\n")
    return path


def cut(prompt: str | list[Message]) -> str | list[Message]:
    """The begin of a text; of a conversation the first message and the last ones, each cut short."""
    if isinstance(prompt, str):
        return _cut(prompt)
    kept = prompt if len(prompt) <= MESSAGES else [prompt[0], *prompt[1 - MESSAGES :]]
    return [{**message, "content": _cut(message["content"])} for message in kept]


def _cut(text: str) -> str:
    # Half a character at the end is left out.
    return text.encode()[:TEXT_BYTES].decode(errors="ignore")
