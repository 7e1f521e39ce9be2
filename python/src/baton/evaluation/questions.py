"""The problems of an evaluation with their answers, from a JSONL file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.errors import BatonError
from baton.evaluation.options import EvalOptions
from baton.problems.prompts import OptionNames, Prompt, check_template, checked_prompt, fill, prompt_tokens, with_system
from baton.problems.rows import read_rows
from baton.weights.names import nearest

NAMES = OptionNames(prompt="--problem-column", chat="--no-chat", no_chat="no --system", system="--system")
#: Columns that are looked for where none is named.
PROBLEM = ("problem", "question", "prompt")
ANSWER = ("answer", "final_answer", "expected_answer")


@dataclass(frozen=True)
class Question:
    """`problem`: what is in the data; `prompt`: what is asked. `place`: file and line, from 1."""

    problem: Any
    prompt: Prompt
    answer: str
    place: str


def load_questions(options: EvalOptions) -> list[Question]:
    """Raises BatonError DATA_NOT_FOUND, DATA_NOT_JSON, DATA_COLUMN_MISSING, DATA_COLUMN_AMBIGUOUS, DATA_BAD_PROMPT,
    DATA_BAD_ANSWER, DATA_EMPTY or BAD_OPTIONS."""
    if options.template is not None:
        check_template(options.template, "--template")
    path = Path(options.data)
    questions: list[Question] = []
    columns: tuple[str | None, str] | None = None
    for place, row in read_rows(path, "Correct --data."):
        if columns is None:
            columns = (_problem_column(options, row, place), _answer_column(options, row, place))
        questions.append(_question(options, row, place, *columns))
        if len(questions) == options.limit:
            break
    if not questions:
        raise BatonError(
            "DATA_EMPTY",
            "There are no problems in the data.",
            expected='at least one line such as {"problem": "1+1=", "answer": "2"}',
            found=f"none in {path}",
            action="Correct --data.",
        )
    return questions


def tokens_of(questions: Sequence[Question], tokenizer: Any, options: EvalOptions) -> list[list[int]]:
    """The prompts as the model is given them. Raises BatonError as `prompt_tokens`."""
    chat = "auto" if options.chat else False
    return [prompt_tokens(each.prompt, tokenizer, chat, each.place, NAMES) for each in questions]


def _problem_column(options: EvalOptions, row: Mapping[str, Any], place: str) -> str | None:
    """None: only the template says what is asked."""
    if options.problem_column is not None:
        return options.problem_column
    found = _detected(row, PROBLEM, place, "--problem-column")
    if found is None and options.template is None:
        raise _missing(row, place, f"the problem: {' or '.join(PROBLEM)}", "--problem-column")
    return found


def _answer_column(options: EvalOptions, row: Mapping[str, Any], place: str) -> str:
    if options.answer_column is not None:
        return options.answer_column
    found = _detected(row, ANSWER, place, "--answer-column")
    if found is None:
        raise _missing(row, place, f"the answer: {' or '.join(ANSWER)}", "--answer-column")
    return found


def _detected(row: Mapping[str, Any], names: Sequence[str], place: str, option: str) -> str | None:
    there = [name for name in names if name in row]
    if len(there) > 1:
        raise BatonError(
            "DATA_COLUMN_AMBIGUOUS",
            f"{place} has several columns that may be meant.",
            expected=f"one of {', '.join(names)}",
            found=", ".join(there),
            action=f"Name the right one with {option}.",
        )
    return there[0] if there else None


def _question(
    options: EvalOptions, row: Mapping[str, Any], place: str, problem_column: str | None, answer_column: str
) -> Question:
    def column(name: str, option: str) -> Any:
        if name not in row:
            raise _missing(row, place, f"`{name}`; {nearest(name, row, whose='those there')}", option)
        return row[name]

    problem = None if problem_column is None else column(problem_column, "--problem-column")
    prompt = problem
    if options.template is not None:
        prompt = fill(options.template, lambda name: column(name, "--template"))
    prompt = checked_prompt(prompt, place, NAMES)
    if options.system is not None:
        prompt = with_system(prompt, fill(options.system, lambda name: column(name, "--system")))
    answer = column(answer_column, "--answer-column")
    plain = isinstance(answer, str | int | float) and not isinstance(answer, bool)
    if not plain or not str(answer).strip():
        raise bad_answer(place, repr(answer)[:120])
    return Question(prompt if problem is None else problem, prompt, str(answer), place)


def bad_answer(place: str, found: str) -> BatonError:
    return BatonError(
        "DATA_BAD_ANSWER",
        f"The answer at {place} is none that a completion could be compared with.",
        expected="a number or another mathematical expression, as plain text or LaTeX; it may follow `####`",
        found=found,
        action="Correct this line, or name the right column with --answer-column.",
    )


def _missing(row: Mapping[str, Any], place: str, expected: str, option: str) -> BatonError:
    return BatonError(
        "DATA_COLUMN_MISSING",
        f"{place} lacks a column.",
        expected=f"a column for {expected}" if not expected.startswith("`") else f"a column {expected}",
        found=f"the columns {', '.join(row) or '(none)'}",
        action=f"Correct {option}, or the data.",
    )
