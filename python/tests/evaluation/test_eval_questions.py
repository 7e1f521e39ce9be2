"""Problems and answers are read as they come, and what is wrong with them is named before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eval_cases import TINY, error_of, options, write_lines
from transformers import AutoTokenizer

from baton.evaluation.judging import Judges, Verdict
from baton.evaluation.questions import Question, load_questions, tokens_of

GSM8K = {"question": "How many?", "answer": "6 and <<6+9=15>>9.\n#### 1,015"}


def load(folder: Path, *rows: Any, **changes: Any) -> list[Question]:
    write_lines(folder / "data.jsonl", *rows)
    return load_questions(options(folder, **changes))


@pytest.mark.parametrize("problem", ["problem", "question", "prompt"])
@pytest.mark.parametrize("answer", ["answer", "final_answer", "expected_answer"])
def test_columns_are_found(problem: str, answer: str, tmp_path: Path) -> None:
    [first, second] = load(tmp_path, {problem: "1+1=", answer: 2, "id": 7}, {answer: "3", problem: "1+2="})
    assert (first.problem, first.prompt, first.answer) == ("1+1=", "1+1=", "2")
    assert second.answer == "3"
    assert second.place == f"{tmp_path / 'data.jsonl'}, line 2"


def test_columns_are_named(tmp_path: Path) -> None:
    row = {"a": "1+1=", "b": "2", "problem": "no", "answer": "no"}
    [found] = load(tmp_path, row, problem_column="a", answer_column="b")
    assert (found.prompt, found.answer) == ("1+1=", "2")


def test_templates_and_system_messages(tmp_path: Path) -> None:
    template = "{question} It is \\boxed{x}, {{question}}."
    [found] = load(tmp_path, {**GSM8K, "x": 3}, template=template, system="Level {x}.")
    user = {"role": "user", "content": "How many? It is \\boxed3, {question}."}
    assert found.problem == "How many?"
    assert found.prompt == [{"role": "system", "content": "Level 3."}, user]
    [only] = load(tmp_path, {"a": 1, "answer": 2}, template="{a}+1=")
    assert (only.problem, only.prompt) == ("1+1=", "1+1=")


def test_a_limit_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('\n{"problem": "1", "answer": 1}\n\n{"problem": "2", "answer": 2}\nnonsense')
    assert [each.prompt for each in load_questions(options(tmp_path, limit=2))] == ["1", "2"]
    error_of(lambda: load_questions(options(tmp_path)), "DATA_NOT_JSON")


@pytest.mark.parametrize(
    ("rows", "changes", "code", "named"),
    [
        ([], {}, "DATA_EMPTY", "--data"),
        ([{"problem": "1"}], {}, "DATA_COLUMN_MISSING", "--answer-column"),
        ([{"answer": "1"}], {}, "DATA_COLUMN_MISSING", "--problem-column"),
        ([{"problem": "1", "answer": 1}, {"problem": "1"}], {}, "DATA_COLUMN_MISSING", "--answer-column"),
        ([{"problem": "1", "answer": 1}], {"problem_column": "prblem"}, "DATA_COLUMN_MISSING", "--problem-column"),
        ([{"problem": "1", "answer": 1}], {"template": "{prblem}"}, "DATA_COLUMN_MISSING", "--template"),
        ([{"problem": "1", "question": "1", "answer": 1}], {}, "DATA_COLUMN_AMBIGUOUS", "--problem-column"),
        ([{"problem": "", "answer": 1}], {}, "DATA_BAD_PROMPT", "--problem-column"),
        ([{"problem": 3, "answer": 1}], {}, "DATA_BAD_PROMPT", "--problem-column"),
        ([{"problem": "1", "answer": None}], {}, "DATA_BAD_ANSWER", "--answer-column"),
        ([{"problem": "1", "answer": " "}], {}, "DATA_BAD_ANSWER", "--answer-column"),
        ([{"problem": "1", "answer": ["1"]}], {}, "DATA_BAD_ANSWER", "--answer-column"),
        ([{"problem": "1", "answer": True}], {}, "DATA_BAD_ANSWER", "--answer-column"),
        (["text"], {}, "DATA_NOT_JSON", "line"),
    ],
)
def test_what_is_wrong_is_named(
    rows: list[Any], changes: dict[str, Any], code: str, named: str, tmp_path: Path
) -> None:
    assert named in error_of(lambda: load(tmp_path, *rows, **changes), code).action


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "--data" in error_of(lambda: load_questions(options(tmp_path)), "DATA_NOT_FOUND").action


def test_chat_templates_are_used_where_there_are_some(tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(TINY)
    questions = load(tmp_path, {"problem": "1+1=", "answer": 2})
    plain = list(tokenizer("1+1=")["input_ids"])
    assert tokens_of(questions, tokenizer, options(tmp_path)) == [plain]
    system = load(tmp_path, {"problem": "1+1=", "answer": 2}, system="2")
    error = error_of(lambda: tokens_of(system, tokenizer, options(tmp_path)), "NO_CHAT_TEMPLATE")
    assert "--system" in error.action
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}+{% endfor %}"
    assert tokens_of(questions, tokenizer, options(tmp_path)) == [list(tokenizer("1+1=+")["input_ids"])]
    assert tokens_of(questions, tokenizer, options(tmp_path, chat=False)) == [plain]


@pytest.mark.parametrize(
    ("completion", "answer", "correct", "found"),
    [
        ("So it is \\boxed{25}.", "025", True, "25"),  # AIME's, of three digits
        ("So it is 025.", "25", True, "25"),
        ("The answer is 000", "0", True, "0"),
        ("6+9=15\n#### 1015", GSM8K["answer"], True, "1015"),
        ("The answer is 1,015 dollars.", GSM8K["answer"], True, "1015"),
        ("first 1015, then \\boxed{15}", GSM8K["answer"], False, "15"),
        ("\\boxed{\\frac{1}{2}}", "0.5", True, "\\frac{1}{2}"),
        ("Step 1: \\boxed{3}\nStep 2: \\boxed{4}", "4", True, "4"),
        ("\\boxed{3} no \\boxed{4}", "3", False, "4"),
        ("$\\boxed{3}$ or $\\boxed{\\frac{1}{2}}$, done: 7", "0.5", True, "\\frac{1}{2}"),
        ("$x = \\boxed{3}$ and $x = \\boxed{4}$", "$3, 4$", True, "3 and 4"),
        ("\\boxed{3} or \\boxed{4", "4", False, "3"),
        ("I do not know.", "5", False, None),
        ("", "5", False, None),
    ],
)
def test_judging(completion: str, answer: str, correct: bool, found: str | None, judges: Judges) -> None:
    verdicts: list[Verdict] = []
    judges.judge(completion, answer, verdicts.append).result()
    [verdict] = verdicts
    assert (verdict.correct, verdict.found, verdict.failure) == (correct, found, None)


def test_answers_that_nothing_can_be_compared_with(judges: Judges, tmp_path: Path) -> None:
    rows = [{"problem": "1", "answer": answer} for answer in ("5", "#### ", "\\frac{1}{2}", "####")]
    questions = load(tmp_path, *rows)
    error = error_of(lambda: judges.check(questions), "DATA_BAD_ANSWER")
    assert "line 2" in error.message
    assert "2 of 4" in error.found
    judges.check([questions[0], questions[2]])
