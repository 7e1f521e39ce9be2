"""Engines: what a sample depends on, and what becomes of an evaluation whose engine fails."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_cases import TINY, error_of
from transformers import AutoTokenizer

from baton.evaluation.engines import Place, generate
from baton.evaluation.job import Done, Job
from baton.evaluation.transformers_engine import TransformersEngine
from baton.evaluation.vllm_engine import arguments, memory_share, sampling
from baton.examples.arithmetic import held_out_problems

Samples = dict[tuple[int, int], list[int]]


def job(**changes: Any) -> Job:
    tokenizer: Any = AutoTokenizer.from_pretrained(TINY)
    problems = held_out_problems()[:20]
    values: dict[str, Any] = {
        "engine": "transformers",
        "model": str(TINY),
        "dtype": "float32",
        "tensor_parallel": 1,
        "batch_size": 64,
        "length": 64,
        "max_tokens": 6,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": 0,
        "stop_token_ids": [int(tokenizer.eos_token_id)],
        "problems": list(range(len(problems))),
        "samples": 3,
        "prompts": [list(tokenizer(each.prompt)["input_ids"]) for each in problems],
    }
    values |= changes
    values["samples"] = [list(range(values["samples"]))] * len(values["problems"])
    return Job(**values)


def samples_of(**changes: Any) -> Samples:
    made: Samples = {}

    def take(reply: Any) -> None:
        if isinstance(reply, Done):
            made[reply.problem, reply.sample] = reply.tokens

    TransformersEngine(job(**changes)).run(take)
    return made


def test_a_sample_depends_on_seed_problem_and_number_and_not_on_its_batch() -> None:
    found = samples_of()
    assert found.keys() == {(problem, sample) for problem in range(20) for sample in range(3)}
    assert found == samples_of(batch_size=7)
    other = samples_of(seed=1)
    assert sum(found[key] != other[key] for key in found) > 10
    differ = [len({tuple(found[problem, sample]) for sample in range(3)}) > 1 for problem in range(20)]
    assert sum(differ) > 5
    # As an engine beside another one gets them: every second problem, under its own number.
    whole = job()
    part = samples_of(problems=whole.problems[1::2], prompts=whole.prompts[1::2])
    assert part == {key: tokens for key, tokens in found.items() if key[0] % 2}


def test_a_temperature_of_almost_0_is_greedy_and_a_high_one_is_not() -> None:
    greedy = samples_of(samples=1, temperature=0.0)
    assert greedy == samples_of(samples=1, temperature=1e-4)
    for cuts in ({"top_p": 1e-6}, {"top_k": 1}, {"min_p": 1.0}):
        assert greedy == samples_of(samples=1, **cuts)
    assert greedy != samples_of(samples=1, temperature=5.0)


def test_completions_end_with_their_stop_token_or_at_their_length() -> None:
    [stop] = job().stop_token_ids
    for tokens in samples_of().values():
        assert stop not in tokens[:-1]
        assert tokens[-1] == stop or len(tokens) == 6
    assert all(len(tokens) == 6 for tokens in samples_of(stop_token_ids=[], samples=1).values())


def test_what_vllm_is_told() -> None:
    made = job(engine="vllm", tensor_parallel=2)
    assert arguments(made)["distributed_executor_backend"] == "mp"
    assert arguments(made)["max_model_len"] == 64
    seeds = {sampling(made, problem, sample)["seed"] for problem in range(20) for sample in range(3)}
    assert len(seeds) == 60
    greedy = sampling(job(temperature=0.0, top_k=3, top_p=0.5, min_p=0.1), 0, 0)
    assert (greedy["temperature"], greedy["seed"]) == (0.0, None)
    assert (greedy["top_k"], greedy["top_p"], greedy["min_p"]) == (0, 1.0, 0.0)
    drawn = sampling(job(temperature=0.7, top_k=3, top_p=0.5, min_p=0.1), 0, 0)
    assert (drawn["top_k"], drawn["top_p"], drawn["min_p"]) == (3, 0.5, 0.1)


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def place(folder: Path) -> Place:
    return Place("", folder / "logs" / "engine-0.log")


def test_an_engine_that_cannot_load_its_model(tmp_path: Path) -> None:
    before = children()
    error = error_of(lambda: generate([job(model="/nowhere")], [place(tmp_path)], print, 60, 60), "ENGINE_NOT_STARTED")
    assert "/nowhere" in str(error)
    assert "Traceback" in (tmp_path / "logs" / "engine-0.log").read_text()
    assert children() == before


def test_an_engine_that_does_not_start(tmp_path: Path) -> None:
    before = children()
    error = error_of(lambda: generate([job()], [place(tmp_path)], print, start_s=0.05, stall_s=60), "ENGINE_STALLED")
    assert "did not start" in error.message
    assert "--start-deadline" in error.action
    assert children() == before


@pytest.mark.parametrize(("blow", "code"), [(signal.SIGKILL, "ENGINE_DIED"), (signal.SIGSTOP, "ENGINE_STALLED")])
def test_an_engine_that_is_struck_at_work(blow: signal.Signals, code: str, tmp_path: Path) -> None:
    before = children()
    came: list[Done] = []
    struck = 0.0

    def strike(done: Done) -> None:
        nonlocal struck
        if not came:
            [pid] = set(children()) - set(before)
            os.kill(pid, blow)
            struck = time.monotonic()
        came.append(done)

    work = job(batch_size=1, samples=50)
    error = error_of(lambda: generate([work], [place(tmp_path)], strike, start_s=60, stall_s=1.0), code)
    assert "engine-0.log" in error.action
    assert time.monotonic() - struck < 10
    assert 0 < len(came) < 1000
    assert children() == before


@pytest.mark.parametrize(("free", "wanted"), [(80, 0.92), (40, 0.475), (1, 0.011875)])
def test_vllm_takes_no_more_than_is_free(monkeypatch: pytest.MonkeyPatch, free: int, wanted: float) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free << 30, 80 << 30))
    assert memory_share(1) == pytest.approx(wanted)
    assert memory_share(2) == pytest.approx(0.92)
