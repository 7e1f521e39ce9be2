"""What an evaluation has found: every completion, and the figures over all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.evaluation.estimates import METHOD, estimate
from baton.evaluation.judging import Verdict
from baton.evaluation.questions import Question

RESULTS = "results.jsonl"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Answered:
    """One completion. `tokens`: how many, with the one that ended it."""

    text: str
    tokens: int
    finish: str
    verdict: Verdict


def figures(answers: Sequence[Sequence[Answered]], ks: Sequence[int], confidence: float) -> dict[str, Any]:
    """`answers`: by problem, then by sample."""
    every = [each for samples in answers for each in samples]
    counts = [(len(samples), sum(each.verdict.correct for each in samples)) for samples in answers]
    estimates = [estimate(counts, k, confidence) for k in ks]
    tokens = sum(each.tokens for each in every)
    failures = [each.verdict.failure for each in every if each.verdict.failure is not None]
    return {
        "problems": len(answers),
        "passAtK": [{"k": each.k, "value": each.value, "low": each.low, "high": each.high} for each in estimates],
        "interval": {"confidence": confidence, "method": METHOD},
        "completions": {
            "count": len(every),
            "correct": sum(correct for _, correct in counts),
            "truncated": _share(sum(each.finish == "length" for each in every), len(every)),
            "withoutAnswer": _share(sum(each.verdict.found is None for each in every), len(every)),
            # Counted as wrong.
            "notJudged": len(failures),
            "firstFailure": failures[0] if failures else None,
            "tokens": tokens,
            "meanTokens": _share(tokens, len(every)),
        },
    }


def write(
    folder: Path,
    questions: Sequence[Question],
    answers: Sequence[Sequence[Answered]],
    summary: Mapping[str, Any],
) -> None:
    """Both files, each whole or as it was before."""
    lines = (json.dumps(_line(*each), ensure_ascii=False) for each in zip(questions, answers, strict=True))
    _replace(folder / RESULTS, "".join(f"{line}\n" for line in lines))
    _replace(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")


def _line(question: Question, samples: Sequence[Answered]) -> dict[str, Any]:
    return {
        "place": question.place,
        "problem": question.problem,
        "answer": question.answer,
        "correct": sum(each.verdict.correct for each in samples),
        "samples": [
            {
                "text": each.text,
                "found": each.verdict.found,
                "correct": each.verdict.correct,
                "finish": each.finish,
                "tokens": each.tokens,
                **({} if each.verdict.failure is None else {"failure": each.verdict.failure}),
            }
            for each in samples
        ],
    }


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
