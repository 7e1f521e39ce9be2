"""Carrying out an evaluation: generate, judge what comes, write everything down."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from baton.evaluation.engines import Generated, Place, generate
from baton.evaluation.job import Done, Job
from baton.evaluation.judging import Judges, Verdict
from baton.evaluation.plan import Plan
from baton.evaluation.report import RESULTS, SUMMARY, Answered, figures, write
from baton.evaluation.unfinished import Unfinished
from baton.evaluation.weights import as_model

PROGRESS_S = 10.0
#: How long completions that came before a failure may take to be judged, and so kept.
JUDGE_REST_S = 30.0
MINUTE_S = 60.0


def evaluate(plan: Plan, judges: Judges, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the summary. Raises BatonError as `Unfinished`, `as_model` and `generate`."""
    began = time.monotonic()
    options, source, out = plan.options, plan.source, Path(plan.options.out)
    with Unfinished(out, plan.identity, options.resume) as completions:
        # One that fails must not leave the results of another as its own.
        for name in (RESULTS, SUMMARY):
            (out / name).unlink(missing_ok=True)
        earlier = len(completions.answers)
        if earlier:
            say(f"going on with {earlier} completions that are in {completions.path}")
        tokens, generated = _complete(plan, completions, judges, say)
        answers = [
            [completions.answers[problem, sample] for sample in range(options.samples)]
            for problem in range(len(plan.questions))
        ]
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
                "topK": options.top_k,
                "topP": options.top_p,
                "minP": options.min_p,
                "seed": options.seed,
                "maxTokens": plan.max_tokens,
            },
            "engine": {
                "version": plan.identity["engine"],
                "engines": len(plan.choice.devices),
                "tensorParallel": options.tp,
                "batchSize": plan.choice.batch_size,
            },
            **figures(answers, options.ks, options.confidence),
            # Of this process: an earlier one has made so many completions.
            "resumedFrom": earlier,
            "seconds": {
                "total": time.monotonic() - began,
                "start": None if generated is None else generated.start_s,
                "generate": None if generated is None else generated.generate_s,
            },
            "tokensPerSecond": None if generated is None else tokens / generated.generate_s,
            "out": str(out),
        }
        write(out, plan.questions, answers, summary)
        completions.remove()
    return summary


def jobs_of(plan: Plan, model: Path, missing: dict[int, list[int]]) -> list[Job]:
    """`missing`, samples by problem, shared out over the engines like cards: each gets easy and hard ones."""
    count = min(len(plan.choice.devices), len(missing))
    shares = [list(missing)[index::count] for index in range(count)]
    return [
        Job(
            engine=plan.choice.engine,
            model=str(model),
            dtype=plan.dtype,
            tensor_parallel=plan.options.tp,
            batch_size=plan.choice.batch_size,
            length=plan.length,
            max_tokens=plan.max_tokens,
            temperature=plan.options.heat,
            top_k=plan.options.top_k,
            top_p=plan.options.top_p,
            min_p=plan.options.min_p,
            seed=plan.options.seed,
            stop_token_ids=plan.stop_token_ids,
            problems=problems,
            prompts=[plan.prompts[problem] for problem in problems],
            samples=[missing[problem] for problem in problems],
        )
        for problems in shares
    ]


def _complete(
    plan: Plan, completions: Unfinished, judges: Judges, say: Callable[[str], None]
) -> tuple[int, Generated | None]:
    """Generates, judges and keeps what is missing. Returns tokens, and None where nothing was."""
    missing: dict[int, list[int]] = {}
    for problem in range(len(plan.questions)):
        samples = [each for each in range(plan.options.samples) if (problem, each) not in completions.answers]
        if samples:
            missing[problem] = samples
    made = Path(plan.options.out) / ".weights"
    try:
        if not missing:
            return 0, None
        model = as_model(plan.source, plan.dtype, made)
        return _generate(plan, jobs_of(plan, model, missing), completions, judges, say)
    finally:
        # Those of an evaluation that was killed too: nobody else uses them, as the folder is locked.
        shutil.rmtree(made, ignore_errors=True)


def _generate(
    plan: Plan, jobs: list[Job], completions: Unfinished, judges: Judges, say: Callable[[str], None]
) -> tuple[int, Generated]:
    options = plan.options
    count, every = len(completions.answers), len(plan.questions) * options.samples
    began = latest = time.monotonic()
    tokens = 0
    judging: deque[Future[None]] = deque()

    def take(done: Done) -> None:
        nonlocal count, latest, tokens
        # The token that ended it is no part of the answer.
        kept = done.tokens[:-1] if done.finish == "stop" else done.tokens
        text = plan.tokenizer.decode(kept, skip_special_tokens=True)

        def keep(verdict: Verdict) -> None:
            completions.add(done.problem, done.sample, Answered(text, len(done.tokens), done.finish, verdict))

        judging.append(judges.judge(text, plan.questions[done.problem].answer, keep))
        while judging and judging[0].done():
            judging.popleft().result()  # a full disk is found now, not at the end
        count += 1
        tokens += len(done.tokens)
        now = time.monotonic()
        if now - latest >= PROGRESS_S:
            latest = now
            say(f"{count} of {every} completions, {tokens} tokens, {now - began:.0f} s")

    logs = Path(options.out) / "logs"
    places = [Place(plan.choice.devices[index], logs / f"engine-{index}.log") for index in range(len(jobs))]
    try:
        generated = generate(jobs, places, take, options.start_deadline * MINUTE_S, options.stall_deadline * MINUTE_S)
    except BaseException:
        wait(judging, JUDGE_REST_S)
        raise
    for each in judging:
        each.result()
    return tokens, generated
