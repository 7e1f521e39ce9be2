"""Carrying out an evaluation: generate, judge what comes, write everything down."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from baton.evaluation.engines import Generated, Place, generate
from baton.evaluation.job import Done, Job
from baton.evaluation.judging import Judges, Verdict
from baton.evaluation.plan import Plan
from baton.evaluation.report import RESULTS, SUMMARY, Answered, figures, write
from baton.evaluation.weights import as_model

PROGRESS_S = 10.0


def evaluate(plan: Plan, judges: Judges, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the summary. Raises BatonError as `as_model` and `generate`."""
    began = time.monotonic()
    options, source, out = plan.options, plan.source, Path(plan.options.out)
    # One that fails must not leave the results of another as its own.
    for name in (RESULTS, SUMMARY):
        (out / name).unlink(missing_ok=True)
    made = out / f".weights-{os.getpid()}"
    try:
        model = as_model(source, plan.dtype, made)
        answers, generated = _answers(plan, model, judges, say)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    found = figures(answers, options.ks, options.confidence)
    summary: dict[str, Any] = {
        "model": {
            "given": options.model,
            "folder": str(source.folder),
            "kind": source.kind,
            "base": None if source.base is None else str(source.base),
            "dtype": plan.dtype,
        },
        "data": options.data,
        "sampling": {
            "samples": options.samples,
            "temperature": options.heat,
            "topP": options.top_p,
            "seed": options.seed,
            "maxTokens": plan.max_tokens,
        },
        "engine": {
            "version": generated.version,
            "engines": len(plan.choice.devices),
            "tensorParallel": options.tp,
            "batchSize": plan.choice.batch_size,
        },
        **found,
        "seconds": {
            "total": time.monotonic() - began,
            "start": generated.start_s,
            "generate": generated.generate_s,
        },
        "tokensPerSecond": found["completions"]["tokens"] / generated.generate_s,
        "out": str(out),
    }
    write(out, plan.questions, answers, summary)
    return summary


def jobs_of(plan: Plan, model: Path) -> list[Job]:
    """The problems shared out over the engines like cards: each gets easy and hard ones."""
    count = len(plan.choice.devices)
    everything = list(range(len(plan.questions)))
    return [
        Job(
            engine=plan.choice.engine,
            model=str(model),
            dtype=plan.dtype,
            tensor_parallel=plan.options.tp,
            batch_size=plan.choice.batch_size,
            length=plan.length,
            max_tokens=plan.max_tokens,
            samples=plan.options.samples,
            temperature=plan.options.heat,
            top_p=plan.options.top_p,
            seed=plan.options.seed,
            stop_token_ids=plan.stop_token_ids,
            problems=everything[index::count],
            prompts=plan.prompts[index::count],
        )
        for index in range(count)
    ]


def _answers(
    plan: Plan, model: Path, judges: Judges, say: Callable[[str], None]
) -> tuple[list[list[Answered]], Generated]:
    samples, problems = plan.options.samples, len(plan.questions)
    came: dict[tuple[int, int], tuple[Done, str, Future[Verdict]]] = {}
    began = latest = time.monotonic()
    tokens = 0

    def take(done: Done) -> None:
        nonlocal latest, tokens
        # The token that ended it is no part of the answer.
        kept = done.tokens[:-1] if done.finish == "stop" else done.tokens
        text = plan.tokenizer.decode(kept, skip_special_tokens=True)
        came[done.problem, done.sample] = (done, text, judges.judge(text, plan.questions[done.problem].answer))
        tokens += len(done.tokens)
        now = time.monotonic()
        if now - latest >= PROGRESS_S:
            latest = now
            say(f"{len(came)} of {problems * samples} completions, {tokens} tokens, {now - began:.0f} s")

    jobs = jobs_of(plan, model)
    logs = Path(plan.options.out) / "logs"
    places = [Place(devices, logs / f"engine-{index}.log") for index, devices in enumerate(plan.choice.devices)]
    generated = generate(jobs, places, take)

    def answered(problem: int, sample: int) -> Answered:
        done, text, verdict = came[problem, sample]
        return Answered(text, len(done.tokens), done.finish, verdict.result())

    return [[answered(problem, sample) for sample in range(samples)] for problem in range(problems)], generated
