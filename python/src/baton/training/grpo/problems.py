"""The problems of a run, from JSONL files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import msgspec

from baton.errors import BatonError
from baton.training.grpo.options import DataOptions, GrpoOptions
from baton.weights.names import nearest

Message: TypeAlias = dict[str, str]

# {name}, and {{name}} for itself. Anything else in braces is text: \boxed{}, {"json": 1}.
_PLACEHOLDER = re.compile(r"\{\{([^\W\d]\w*)\}\}|\{([^\W\d]\w*)\}")


@dataclass(frozen=True)
class Problem:
    """`prompt`: a text or chat messages. `columns`: for the reward functions. `place`: file and line, from 1."""

    prompt: str | list[Message]
    columns: dict[str, Any]
    place: str


def load_problems(data: DataOptions, folder: Path = Path()) -> list[Problem]:
    """The problems of all files, in their order. Relative paths start at `folder`: the recipe's.

    Raises BatonError DATA_NOT_FOUND, DATA_NOT_JSON, DATA_COLUMN_MISSING, DATA_BAD_PROMPT or DATA_EMPTY.
    """
    problems: list[Problem] = []
    for name in data.files:
        for place, row in _rows(folder / name):
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


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, columns) of each line that is not blank."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise BatonError(
            "DATA_NOT_FOUND",
            f"The file of problems {path} cannot be read.",
            expected="a JSONL file",
            found=error.strerror or str(error),
            action="Correct grpo.data.files (or grpo.held_out); relative paths start at the recipe's folder.",
        ) from error
    with file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf").strip()
            if line:
                place = f"{path}, line {number}"
                yield place, _row(line, place)


def _row(line: bytes, place: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BatonError(
            "DATA_NOT_JSON",
            f"{place} is not a JSON object.",
            expected='one JSON object a line, such as {"prompt": "1+1=", "answer": "2"}',
            found=f"{error}: {line[:80].decode(errors='replace')}",
            action="Correct this line; a JSON list or a pretty-printed file has to become one object a line.",
        ) from error


def _problem(row: dict[str, Any], place: str, data: DataOptions) -> Problem:
    columns = dict(row)
    for ours, theirs in data.columns.items():
        columns[ours] = _column(row, theirs, place, f"grpo.data.columns.{ours}")
    if data.template is not None:
        prompt: Any = _filled(data.template, columns, place, "grpo.data.template")
    else:
        prompt = _column(columns, "prompt", place, "grpo.data.columns.prompt")
    columns.pop("prompt", None)  # reward functions get `prompts`
    prompt = _checked(prompt, place)
    if data.system is not None:
        system = {"role": "system", "content": _filled(data.system, columns, place, "grpo.data.system")}
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        prompt = messages if messages[0]["role"] == "system" else [system, *messages]
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
    def fill(match: re.Match[str]) -> str:
        literal, name = match.groups()
        return f"{{{literal}}}" if literal is not None else str(_column(columns, name, place, option))

    return _PLACEHOLDER.sub(fill, template)


def _checked(prompt: Any, place: str) -> str | list[Message]:
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt:
        messages = cast("list[Any]", prompt)
        if all(_is_message(message) for message in messages):
            return messages
    raise BatonError(
        "DATA_BAD_PROMPT",
        f"The prompt at {place} cannot be used.",
        expected="a text, or a list of messages with texts as `role` and `content`; not empty",
        found=repr(prompt)[:120],
        action="Correct this line, or grpo.data.columns.prompt.",
    )


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict):
        return False
    parts = cast("dict[str, Any]", message)
    return isinstance(parts.get("role"), str) and isinstance(parts.get("content"), str)
