"""The problems of a run, from JSONL files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from baton.errors import BatonError
from baton.problems.prompts import Message, OptionNames, Prompt, check_template, checked_prompt, fill, with_system
from baton.problems.rows import read_rows
from baton.training.grpo.options import DataOptions, GrpoOptions
from baton.weights.names import nearest

__all__ = ["NAMES", "Message", "Problem", "columns_of", "load_held_out", "load_problems"]

NAMES = OptionNames(
    prompt="grpo.data.columns.prompt",
    chat="grpo.data.chat",
    no_chat="grpo.data.chat: false",
    system="grpo.data.system",
)
TEMPLATE = "grpo.data.template"
_FILES = "Correct grpo.data.files (or grpo.held_out); relative paths start at the recipe's folder."


@dataclass(frozen=True)
class Problem:
    """`prompt`: a text or chat messages. `columns`: for the reward functions. `place`: file and line, from 1."""

    prompt: Prompt
    columns: dict[str, Any]
    place: str


def load_problems(data: DataOptions, folder: Path = Path()) -> list[Problem]:
    """The problems of all files, in their order. Relative paths start at `folder`: the recipe's.

    Raises BatonError DATA_NOT_FOUND, DATA_NOT_JSON, DATA_COLUMN_MISSING, DATA_BAD_PROMPT, DATA_EMPTY or BAD_OPTIONS.
    """
    if data.template is not None:
        check_template(data.template, TEMPLATE)
    problems: list[Problem] = []
    for name in data.files:
        for place, row in read_rows(folder / name, _FILES):
            problems.append(_problem(row, place, data))
            if len(problems) == data.limit:
                return problems
    if not problems:
        raise BatonError(
            "DATA_EMPTY",
            "There are no problems in the data.",
            expected="at least one line with a problem",
            found=f"none in {', '.join(str(folder / name) for name in data.files)}",
            action="Put the right files into grpo.data.files.",
        )
    return problems


def load_held_out(options: GrpoOptions, folder: Path = Path()) -> list[Problem]:
    """The problems to evaluate on: none without `held_out`. Read like those to train on, and with the same errors."""
    if options.held_out is None:
        return []
    return load_problems(replace(options.data, files=(options.held_out,), limit=options.held_out_limit), folder)


def columns_of(problems: Sequence[Problem]) -> dict[str, list[Any]]:
    """All columns that any of the problems has: one list each, None where a problem has not."""
    names = dict.fromkeys(name for problem in problems for name in problem.columns)
    return {name: [problem.columns.get(name) for problem in problems] for name in names}


def _problem(row: dict[str, Any], place: str, data: DataOptions) -> Problem:
    columns = dict(row)
    for ours, theirs in data.columns.items():
        columns[ours] = _column(row, theirs, place, f"grpo.data.columns.{ours}")
    if data.template is not None:
        prompt: Any = _filled(data.template, columns, place, TEMPLATE)
    else:
        prompt = _column(columns, "prompt", place, NAMES.prompt)
    columns.pop("prompt", None)  # reward functions get `prompts`
    prompt = checked_prompt(prompt, place, NAMES)
    if data.system is not None:
        prompt = with_system(prompt, _filled(data.system, columns, place, NAMES.system))
    return Problem(prompt, columns, place)


def _column(columns: Mapping[str, Any], name: str, place: str, option: str) -> Any:
    if name in columns:
        return columns[name]
    raise BatonError(
        "DATA_COLUMN_MISSING",
        f"{place} has no column `{name}`.",
        expected=f"a column `{name}`; {nearest(name, columns, whose='those there')}",
        found=f"the columns {', '.join(columns) or '(none)'}",
        action=f"Correct {option}, or the data.",
    )


def _filled(template: str, columns: Mapping[str, Any], place: str, option: str) -> str:
    return fill(template, lambda name: _column(columns, name, place, option))
