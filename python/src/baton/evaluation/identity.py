"""What decides the completions of an evaluation, and how they are judged."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from baton.evaluation.choice import Choice, version_of
from baton.evaluation.model_source import Source
from baton.evaluation.options import EvalOptions
from baton.evaluation.questions import Question
from baton.weights_digest import WEIGHTS, weights_digest

FORMAT = 1


def identity(
    options: EvalOptions,
    source: Source,
    questions: Sequence[Question],
    prompts: Sequence[Sequence[int]],
    stop_token_ids: Sequence[int],
    max_tokens: int,
    dtype: str,
    choice: Choice,
) -> dict[str, Any]:
    """By name. Neither the batch size nor the number of engines: samples do not depend on them, nor on --k."""
    asked = hashlib.sha256()
    for question, prompt in zip(questions, prompts, strict=True):
        asked.update(repr((list(prompt), question.answer)).encode())
    # DeepSpeed's parts lie in a folder of their own.
    folder = source.folder / source.tag if source.kind == "deepspeed" else source.folder
    patterns = ("*.pt",) if source.kind == "deepspeed" else WEIGHTS
    return {
        "format": FORMAT,
        "model": f"{source.kind}, weights {weights_digest(folder, patterns)}",
        "base": None if source.base is None else weights_digest(source.base),
        "data": f"{len(questions)} problems, {asked.hexdigest()[:16]}",
        "samples": options.samples,
        "temperature": options.heat,
        "top-k": options.top_k,
        "top-p": options.top_p,
        "min-p": options.min_p,
        "seed": options.seed,
        "max-tokens": max_tokens,
        "stop tokens": list(stop_token_ids),
        "dtype": dtype,
        "engine": version_of(choice.engine),
        "judge-deadline": options.judge_deadline,
    }
