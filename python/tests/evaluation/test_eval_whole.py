"""`baton eval`'s Python side as a whole, against a plain loop of transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_cases import TINY, error_of, make_model, options, write_lines
from transformers import AutoModelForCausalLM, AutoTokenizer

from baton.evaluation.judging import Judges
from baton.evaluation.plan import make_plan
from baton.evaluation.running import evaluate
from baton.examples.arithmetic import held_out_problems

PROBLEMS = [{"question": each.prompt, "answer": f"Add.\n#### {each.answer}"} for each in held_out_problems()[:24]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("evaluation")
    write_lines(made / "data.jsonl", *PROBLEMS)
    make_model(made / "random")
    return made


def run(
    folder: Path, judges: Judges, name: str, engines: int = 1, **changes: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Summary and lines of an evaluation."""
    plan = make_plan(options(folder, out=str(folder / name), dtype="float32", **changes), judges, print)
    # Without GPUs there is one engine; more of them share the processor.
    plan = replace(plan, choice=replace(plan.choice, devices=[""] * engines))
    summary = evaluate(plan, judges, print)
    assert json.loads((folder / name / "summary.json").read_text()) == summary
    return summary, [json.loads(line) for line in (folder / name / "results.jsonl").read_text().splitlines()]


def plain_loop(model_folder: Path, max_tokens: int) -> list[str]:
    """One problem at a time, without padding."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    texts = []
    for row in PROBLEMS:
        ids = tokenizer(row["question"], return_tensors="pt").input_ids
        with torch.inference_mode():
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens, pad_token_id=0
            )
        texts.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


def test_greedily_the_same_answers_as_a_plain_loop(folder: Path, judges: Judges) -> None:
    summary, lines = run(folder, judges, "greedy", engines=2, batch_size=7)
    texts = plain_loop(TINY, 58)
    assert [line["samples"][0]["text"] for line in lines] == texts
    right = [text.strip() == row["answer"].rpartition("#### ")[2] for text, row in zip(texts, PROBLEMS, strict=True)]
    assert [line["samples"][0]["correct"] for line in lines] == right
    [one] = summary["passAtK"]
    assert one["value"] == pytest.approx(sum(right) / len(right))
    assert 0 < sum(right) < len(right)
    assert one["low"] < one["value"] < one["high"]
    assert [line["problem"] for line in lines] == [row["question"] for row in PROBLEMS]
    assert summary["engine"]["engines"] == 2
    assert sorted(path.name for path in (folder / "greedy").iterdir()) == ["logs", "results.jsonl", "summary.json"]
    cuts = {"topK": 0, "topP": 1.0, "minP": 0.0}
    assert summary["sampling"] == {"samples": 1, "temperature": 0.0, **cuts, "seed": 0, "maxTokens": 58}


def test_greedily_the_same_long_texts_as_a_plain_loop(folder: Path, judges: Judges) -> None:
    # A model of random weights goes on and on: any mistake in padding, positions or stopping shows in what follows.
    summary, lines = run(folder, judges, "long", model=str(folder / "random"), max_tokens=20, batch_size=16)
    texts = plain_loop(folder / "random", 20)
    assert [line["samples"][0]["text"] for line in lines] == texts
    assert len(set(texts)) > 10
    cut = [line["samples"][0]["finish"] == "length" for line in lines]
    assert summary["completions"]["truncated"] == pytest.approx(sum(cut) / len(cut))
    assert all(line["samples"][0]["tokens"] == 20 for line, each in zip(lines, cut, strict=True) if each)


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"model": "/nowhere"}, "MODEL_NOT_FOUND", "--model"),
        ({"data": "/nowhere"}, "DATA_NOT_FOUND", "--data"),
        ({"answer_column": "anser"}, "DATA_COLUMN_MISSING", "--answer-column"),
        ({"data": "bad.jsonl"}, "DATA_BAD_ANSWER", "line 3"),
        ({"max_tokens": 60}, "PROMPT_TOO_LONG", "--max-tokens"),
        ({"max_tokens": 64}, "BAD_OPTIONS", "less than the model's 64 positions"),
        ({"template": "{question}" + "9" * 70}, "PROMPT_TOO_LONG", "positions"),
        ({"template": "Add, in {{question}}."}, "BAD_OPTIONS", "--template"),
        ({"samples": 0}, "BAD_OPTIONS", "--samples"),
        ({"samples": 2, "temperature": 0.0}, "BAD_OPTIONS", "--samples"),
        ({"samples": 2, "k": [3]}, "BAD_OPTIONS", "--k"),
        ({"k": [0]}, "BAD_OPTIONS", "--k"),
        ({"temperature": -1.0}, "BAD_OPTIONS", "--temperature"),
        ({"samples": 2, "top_k": -1}, "BAD_OPTIONS", "--top-k"),
        ({"samples": 2, "top_p": 0.0}, "BAD_OPTIONS", "--top-p"),
        ({"samples": 2, "min_p": 1.5}, "BAD_OPTIONS", "--min-p"),
        ({"top_k": 3}, "BAD_OPTIONS", "--temperature"),
        ({"top_p": 0.5, "temperature": 0.0}, "BAD_OPTIONS", "--temperature"),
        ({"seed": -1}, "BAD_OPTIONS", "--seed"),
        ({"confidence": 1.0}, "BAD_OPTIONS", "--confidence"),
        ({"stall_deadline": 0.0}, "BAD_OPTIONS", "--stall-deadline"),
        ({"judge_deadline": -1.0}, "BAD_OPTIONS", "--judge-deadline"),
        ({"system": "Be brief.", "chat": False}, "BAD_OPTIONS", "--system"),
        ({"system": "Be brief."}, "NO_CHAT_TEMPLATE", "--system"),
        ({"tp": 2}, "BAD_OPTIONS", "--tp"),
        ({"engine": "vllm"}, "VLLM_MISSING", "--engine transformers"),
        ({"out": "/proc/nowhere"}, "OUTPUT_NOT_WRITABLE", "--out"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_an_engine_is_started(
    changes: dict[str, Any], code: str, said: str, folder: Path, judges: Judges
) -> None:
    if code == "VLLM_MISSING" and torch.cuda.is_available():
        pytest.skip("vLLM may be there")
    if changes.get("data") == "bad.jsonl":
        bad = write_lines(folder / "bad.jsonl", *PROBLEMS[:2], {**PROBLEMS[2], "answer": "Add.\n#### "})
        changes = {"data": str(bad)}
    error = error_of(lambda: make_plan(options(folder, **changes), judges, print), code)
    assert said in str(error)
    assert not (folder / "out" / "logs").exists()
