"""An evaluation that was ended, whatever ended it, goes on where it stopped, and ends as if it never had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from eval_cases import TINY, error_of, options, write_lines
from extent import only_in_all
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from baton.errors import BatonError
from baton.evaluation import running
from baton.evaluation.judging import Judges, Verdict
from baton.evaluation.options import EvalOptions
from baton.evaluation.plan import make_plan
from baton.evaluation.report import Answered
from baton.evaluation.running import evaluate
from baton.evaluation.unfinished import NAME, Unfinished
from baton.examples.arithmetic import held_out_problems

SAMPLES = 4
PROBLEMS = [{"question": each.prompt, "answer": str(each.answer)} for each in held_out_problems()[:30]]
ANSWERED = Answered("12", 3, "stop", Verdict(correct=True, found="12", failure=None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With data, and an adapter, whose weights have to be put together for an engine."""
    made = tmp_path_factory.mktemp("unfinished")
    write_lines(made / "data.jsonl", *PROBLEMS)
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(str(made / "adapter"))
    AutoTokenizer.from_pretrained(TINY).save_pretrained(made / "adapter")
    return made


def asked(folder: Path, name: str, **changes: Any) -> EvalOptions:
    values = {"model": str(folder / "adapter"), "base": str(TINY), "out": str(folder / name), "dtype": "float32"}
    return options(folder, **values | {"samples": SAMPLES, "batch_size": 2} | changes)


def run(folder: Path, judges: Judges, name: str, **changes: Any) -> dict[str, Any]:
    """The summary, without what differs from run to run."""
    summary = evaluate(make_plan(asked(folder, name, **changes), judges, print), judges, print)
    return {key: value for key, value in summary.items() if key not in ("seconds", "tokensPerSecond", "out")}


def rows(out: Path) -> int:
    path = out / NAME
    return max(0, len(path.read_bytes().splitlines()) - 1) if path.exists() else 0


def files(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def start(given: EvalOptions) -> subprocess.Popen[bytes]:
    """As `baton eval` starts it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "baton.evaluation", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(running.__file__).parents[2]), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(given))
    process.stdin.close()
    return process


def test_killed_it_goes_on_and_ends_as_if_it_had_not_been(folder: Path, judges: Judges) -> None:
    whole = run(folder, judges, "whole")
    out, every = folder / "killed", SAMPLES * len(PROBLEMS)
    process = start(asked(folder, "killed"))
    try:
        deadline = time.monotonic() + 60
        while rows(out) < 10:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        error = error_of(lambda: run(folder, judges, "killed"), "OUTPUT_IN_USE")
        assert str(out) in error.message
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = rows(out)
    assert 10 <= kept < every
    assert files(out) == [".weights", "logs", NAME]

    error = error_of(lambda: run(folder, judges, "killed", seed=1), "EVALUATION_MISMATCH")
    assert (error.expected, error.found) == ("seed: 0", "seed: 1")
    assert rows(out) == kept

    resumed = run(folder, judges, "killed")
    assert resumed == whole | {"resumedFrom": kept}
    assert 0 < whole["completions"]["correct"] < every
    assert (out / "results.jsonl").read_bytes() == (folder / "whole" / "results.jsonl").read_bytes()
    assert files(out) == files(folder / "whole") == ["logs", "results.jsonl", "summary.json"]


@only_in_all
def test_what_an_engine_had_done_when_it_died_is_kept(
    folder: Path, judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "PROGRESS_S", 0.0)
    judge = Judges._judge
    # Slower than the engine, so that it dies while completions wait to be judged.
    monkeypatch.setattr(Judges, "_judge", lambda *asked: time.sleep(0.1) or judge(*asked))
    plan = make_plan(asked(folder, "died"), judges, print)
    before = set(children())

    def strike(progress: str) -> None:
        if progress.startswith("20 of "):
            [pid] = set(children()) - before
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(BatonError) as caught:
        evaluate(plan, judges, strike)
    assert caught.value.code == "ENGINE_DIED"
    assert rows(folder / "died") >= 20
    assert not (folder / "died" / ".weights").exists()
    again = run(folder, judges, "died", resume=False, limit=2)
    assert (again["resumedFrom"], again["completions"]["count"]) == (0, 2 * SAMPLES)


def test_nothing_left_to_generate_needs_no_engine(folder: Path, judges: Judges) -> None:
    plan = make_plan(asked(folder, "judged", limit=1, tp=1), judges, print)
    with Unfinished(folder / "judged", plan.identity, resume=True) as completions:
        for sample in range(SAMPLES):
            completions.add(0, sample, ANSWERED)
    (folder / "judged" / ".weights").mkdir()  # of the one that was killed
    summary = evaluate(plan, judges, print)
    assert (summary["resumedFrom"], summary["tokensPerSecond"], summary["seconds"]["generate"]) == (SAMPLES, None, None)
    assert summary["passAtK"][0]["value"] == 1.0
    assert files(folder / "judged") == ["results.jsonl", "summary.json"]


def test_a_line_that_was_not_written_to_its_end_is_generated_again(tmp_path: Path) -> None:
    with Unfinished(tmp_path, {"seed": 1}, resume=True) as completions:
        for sample in range(3):
            completions.add(0, sample, ANSWERED)
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole[:-20])
    with Unfinished(tmp_path, {"seed": 1}, resume=True) as completions:
        assert completions.answers == {(0, 0): ANSWERED, (0, 1): ANSWERED}
        completions.add(0, 2, ANSWERED)
    assert (tmp_path / NAME).read_bytes() == whole


def test_one_that_had_not_begun_stands_against_no_other(tmp_path: Path) -> None:
    with Unfinished(tmp_path, {"seed": 1}, resume=True):
        error_of(lambda: Unfinished(tmp_path, {"seed": 1}, resume=False), "OUTPUT_IN_USE")
    assert files(tmp_path) == []
    (tmp_path / NAME).write_text(json.dumps({"seed": 1}) + "\n")
    with Unfinished(tmp_path, {"seed": 2}, resume=True) as completions:
        completions.add(0, 0, ANSWERED)
    error_of(lambda: Unfinished(tmp_path, {"seed": 1}, resume=True), "EVALUATION_MISMATCH")
    with Unfinished(tmp_path, {"seed": 1}, resume=False) as completions:
        assert completions.answers == {}


def test_a_judgement_that_comes_too_late_writes_nowhere(tmp_path: Path) -> None:
    with Unfinished(tmp_path, {}, resume=True) as completions:
        completions.add(0, 0, ANSWERED)
    with (tmp_path / "other").open("w"):  # has the number that the file had
        error_of(lambda: completions.add(0, 1, ANSWERED), "OUTPUT_NOT_WRITABLE")
    assert (tmp_path / "other").read_bytes() == b""


def test_what_decides_the_completions_is_in_their_identity(folder: Path, judges: Judges) -> None:
    def identity(**changes: Any) -> dict[str, Any]:
        return make_plan(asked(folder, "identity", **changes), judges, print).identity

    base = identity()
    other = write_lines(folder / "other.jsonl", *PROBLEMS[:-1], {**PROBLEMS[-1], "answer": "7"})
    for changes, name in (
        ({"model": str(TINY), "base": None}, "model"),
        ({"data": str(other)}, "data"),
        ({"limit": 3}, "data"),
        ({"template": "0{question}"}, "data"),
        ({"samples": 2}, "samples"),
        ({"temperature": 0.5}, "temperature"),
        ({"top_k": 3}, "top-k"),
        ({"top_p": 0.5}, "top-p"),
        ({"min_p": 0.1}, "min-p"),
        ({"seed": 1}, "seed"),
        ({"max_tokens": 5}, "max-tokens"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"judge_deadline": 1.0}, "judge-deadline"),
    ):
        changed = identity(**changes)
        assert changed[name] != base[name], name
    assert identity(batch_size=9, k=[1], confidence=0.5, stall_deadline=1.0) == base


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
