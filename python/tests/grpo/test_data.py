"""Problems from files, their tokens, and the order in which batches take them."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import error_of, options, write_lines

from baton.training.grpo.data import Order, Problem, columns_of, load_held_out, load_problems, tokenize

GSM8K = {"question": "How many?", "answer": "6 and 9.\n#### 15"}
USER = {"role": "user", "content": "1+1="}
SYSTEM = {"role": "system", "content": "Be brief."}


def load(folder: Path, *rows: Any, **data: Any) -> list[Problem]:
    write_lines(folder / "train.jsonl", *rows)
    return load_problems(options(data=data).data, folder)


class Letters:
    """A tokenizer of one token a character, 1 in front, and a template that shows its arguments."""

    def __init__(self, template: bool = True) -> None:
        self.chat_template = "written" if template else None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [ord(each) for each in text]}

    def apply_chat_template(self, messages: list[dict[str, str]], **how: Any) -> str:
        assert how.pop("tokenize") is False
        if any(message["role"] == "tool" for message in messages):
            raise ValueError("unknown role")
        text = "".join(f"<{message['role'][0]}>{message['content']}" for message in messages)
        begun = {"add_generation_prompt": False, "continue_final_message": True}
        return text if how == begun else f"{text}<a>"

    def read(self, tokens: list[int]) -> str:
        return "".join("^" if each == 1 else chr(each) for each in tokens)


def texts(folder: Path, *rows: Any, tokenizer: Letters | None = None, **data: Any) -> list[str]:
    letters = tokenizer or Letters()
    problems = load(folder, *rows, **data)
    return [letters.read(each.prompt_token_ids) for each in tokenize(problems, letters, options(data=data))]


def test_columns_by_the_names_of_other_data(tmp_path: Path) -> None:
    [problem] = load(tmp_path, GSM8K, columns={"prompt": "question", "solution": "answer"})
    assert problem.prompt == "How many?"
    assert problem.columns == {**GSM8K, "solution": GSM8K["answer"]}
    assert problem.place == f"{tmp_path / 'train.jsonl'}, line 1"


def test_a_template_is_filled_in_and_other_braces_stay(tmp_path: Path) -> None:
    template = r"{question} Write \boxed{} or \frac{1}{2}, {{question}}, {level}."
    [problem] = load(tmp_path, {**GSM8K, "level": 3}, template=template, system="For {level}.")
    user = r"How many? Write \boxed{} or \frac{1}{2}, {question}, 3."
    assert problem.prompt == [{"role": "system", "content": "For 3."}, {"role": "user", "content": user}]


def test_text_that_is_filled_in_is_not_filled_again(tmp_path: Path) -> None:
    [problem] = load(tmp_path, {"question": "{answer}", "answer": "no"}, template="{question}!")
    assert problem.prompt == "{answer}!"


def test_messages_keep_their_own_system_message(tmp_path: Path) -> None:
    own = {"role": "system", "content": "Own."}
    first, second = load(tmp_path, {"prompt": [own, USER]}, {"prompt": [USER]}, system="Be brief.")
    assert (first.prompt, second.prompt) == ([own, USER], [SYSTEM, USER])


def test_files_limits_blank_lines_and_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "1"}\n\n{"prompt": "2\\u2028"}')
    write_lines(tmp_path / "b.jsonl", {"prompt": "3", "answer": 4}, {"prompt": "5"})
    read = options(data={"files": ["a.jsonl", "b.jsonl"], "limit": 3}, held_out="b.jsonl", held_out_limit=1)
    problems = load_problems(read.data, tmp_path)
    assert [problem.prompt for problem in problems] == ["1", "2\u2028", "3"]
    assert problems[1].place.endswith("a.jsonl, line 3")
    assert columns_of(problems) == {"answer": [None, None, 4]}
    assert [problem.prompt for problem in load_held_out(read, tmp_path)] == ["3"]
    assert load_held_out(options(), tmp_path) == []


def test_errors_of_the_files(tmp_path: Path) -> None:
    error_of(lambda: load_problems(options(data={"files": ["none.jsonl"]}).data, tmp_path), "DATA_NOT_FOUND")
    error_of(lambda: load_problems(options(data={"files": ["."]}).data, tmp_path), "DATA_NOT_FOUND")
    error_of(lambda: load(tmp_path), "DATA_EMPTY")
    missing = error_of(lambda: load(tmp_path, {"prompt": "1"}, {"promt": "2", "answer": 3}), "DATA_COLUMN_MISSING")
    assert missing.message.endswith("line 2 has no column `prompt`.")
    assert "promt" in missing.expected
    assert missing.found == "the columns promt, answer"
    renamed = error_of(lambda: load(tmp_path, GSM8K, columns={"prompt": "qestion"}), "DATA_COLUMN_MISSING")
    assert "question" in renamed.expected
    error_of(lambda: load(tmp_path, GSM8K, template="{qestion}"), "DATA_COLUMN_MISSING")
    error = error_of(lambda: load(tmp_path, GSM8K, template=r"{{question}} \boxed{}"), "BAD_OPTIONS")
    assert "grpo.data.template" in error.message
    error_of(lambda: load(tmp_path, {"prompt": "1"}, system="{level}"), "DATA_COLUMN_MISSING")


@pytest.mark.parametrize("line", [b'{"prompt": ', b'["prompt"]', b"3", b'{"prompt": NaN}', b'{"prompt": "\xff"}'])
def test_a_line_that_is_no_json_object(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"prompt": "1"}\n' + line + b"\n")
    error = error_of(lambda: load_problems(options().data, tmp_path), "DATA_NOT_JSON")
    assert "train.jsonl, line 2" in error.message


@pytest.mark.parametrize("prompt", ["", None, 3, [], ["text"], [{"role": "user"}], [{"role": "user", "content": 1}]])
def test_a_prompt_that_is_none(tmp_path: Path, prompt: Any) -> None:
    error_of(lambda: load(tmp_path, {"prompt": prompt}), "DATA_BAD_PROMPT")


def test_the_chat_template_is_used_where_asked(tmp_path: Path) -> None:
    text, messages = {"prompt": "1+1="}, {"prompt": [SYSTEM, USER]}
    assert texts(tmp_path, text, messages) == ["<u>1+1=<a>", "<s>Be brief.<u>1+1=<a>"]
    assert texts(tmp_path, text, chat=True) == ["<u>1+1=<a>"]
    assert texts(tmp_path, text, chat=False) == ["^1+1="]
    assert texts(tmp_path, text, tokenizer=Letters(template=False)) == ["^1+1="]


def test_an_answer_that_is_begun_goes_on(tmp_path: Path) -> None:
    assert texts(tmp_path, {"prompt": [USER, {"role": "assistant", "content": "It"}]}) == ["<u>1+1=<a>It"]


def test_errors_of_chat(tmp_path: Path) -> None:
    text, messages, plain = {"prompt": "1"}, {"prompt": [USER]}, Letters(template=False)
    error_of(lambda: texts(tmp_path, text, tokenizer=plain, chat=True), "NO_CHAT_TEMPLATE")
    error_of(lambda: texts(tmp_path, messages, tokenizer=plain), "NO_CHAT_TEMPLATE")
    error_of(lambda: texts(tmp_path, text, tokenizer=plain, system="Be brief."), "NO_CHAT_TEMPLATE")
    error_of(lambda: texts(tmp_path, messages, chat=False), "BAD_OPTIONS")
    unknown = {"prompt": [{"role": "tool", "content": "x"}]}
    assert "unknown role" in error_of(lambda: texts(tmp_path, unknown), "CHAT_TEMPLATE_FAILED").found


class Silent(Letters):
    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:  # noqa: ARG002
        return {"input_ids": []}


def test_a_prompt_without_tokens(tmp_path: Path) -> None:
    error_of(lambda: texts(tmp_path, {"prompt": "1"}, tokenizer=Silent()), "DATA_BAD_PROMPT")


def test_prompts_that_are_too_long(tmp_path: Path) -> None:
    problems = load(tmp_path, {"prompt": "abc"}, {"prompt": "abcdef"}, {"prompt": "abcd"}, {"prompt": "abcdefgh"})
    letters = Letters(template=False)

    def run(model_tokens: int | None = None, said: list[str] | None = None, **changes: Any) -> list[int]:
        say = (said if said is not None else []).append
        return [
            len(each.prompt_token_ids) for each in tokenize(problems, letters, options(**changes), model_tokens, say)
        ]

    assert run() == run(max_prompt_tokens=9) == run(109, max_completion_tokens=100) == [4, 7, 5, 9]
    error = error_of(lambda: run(max_prompt_tokens=5), "PROMPT_TOO_LONG")
    assert error.message.endswith("line 2 has too many tokens.")
    assert error.found == "7 tokens; 2 of 4 prompts are too long, the longest has 9"
    # The tighter of two limits counts, and is named.
    both = error_of(lambda: run(108, max_prompt_tokens=9, max_completion_tokens=100), "PROMPT_TOO_LONG")
    assert "at most 8 tokens (108 positions" in both.expected
    said: list[str] = []
    assert run(None, said, max_prompt_tokens=5, data={"too_long": "drop"}) == [4, 5]
    assert said == ["2 of 4 problems dropped: more than 5 tokens (grpo.max_prompt_tokens), up to 9."]
    error_of(lambda: run(max_prompt_tokens=1, data={"too_long": "drop"}), "DATA_EMPTY")
    error_of(lambda: run(256, max_completion_tokens=256), "BAD_OPTIONS")


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 5), st.integers(0, 30))
@settings(max_examples=200, deadline=None)
def test_every_problem_is_used_before_any_is_used_again(count: int, per_batch: int, seed: int, until: int) -> None:
    order = Order(count, per_batch, seed)
    batches = [order.batch(number) for number in range(until + 1)]
    assert {len(batch) for batch in batches} == {per_batch}
    used = list(chain.from_iterable(batches))
    for begin in range(0, len(used), count):
        epoch = used[begin : begin + count]
        assert max(Counter(epoch).values()) == 1
        assert len(epoch) < count or sorted(epoch) == list(range(count))


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 6), st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_shares_are_equal_consecutive_parts_of_the_batch(count: int, each: int, ranks: int, number: int) -> None:
    order = Order(count, each * ranks, seed=3)
    shares = [order.share(number, rank, ranks) for rank in range(ranks)]
    assert [len(share) for share in shares] == [each] * ranks
    assert list(chain.from_iterable(shares)) == order.batch(number)


def test_an_order_of_each_epoch_and_seed() -> None:
    orders = [Order(50, 50, seed).batch(epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    # Written down: a resumed run goes on in this order, whatever version it is resumed by.
    assert Order(8, 5, seed=7).batch(1) == [7, 5, 1, 1, 3]
    error_of(lambda: Order(8, 5, seed=0).share(0, 0, 2), "BATCH_NOT_DIVISIBLE")
