"""Metrics: one line a step, unknown values as null, and nothing lost or twice when a run is resumed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recipes import error_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from baton.training.grpo.logs import RunLog, read_metrics


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_what_is_unknown_is_null_and_no_point(tmp_path: Path) -> None:
    with RunLog(tmp_path / "new") as log:
        log.write(1, {"reward/mean": 0.5, "kl": None, "loss": math.nan, "norm": math.inf})
        log.write(2, {"reward/mean": 0, "kl": 0.25})
        # Readable while the run goes on.
        assert lines(tmp_path / "new") == [
            {"step": 1, "reward/mean": 0.5, "kl": None, "loss": None, "norm": None},
            {"step": 2, "reward/mean": 0.0, "kl": 0.25},
        ]
        assert curve(tmp_path / "new", "reward/mean") == [(1, 0.5), (2, 0.0)]
    assert curve(tmp_path / "new", "kl") == [(2, 0.25)]
    with pytest.raises(KeyError):
        curve(tmp_path / "new", "loss")


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with RunLog(tmp_path / "none", enabled=False) as log:
        log.write(1, {"a": 1.0})
    assert not (tmp_path / "none").exists()


def test_a_resumed_run_cuts_what_it_will_do_again(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for step in range(1, 6):
            log.write(step, {"a": step})
    with RunLog(tmp_path, resume_at=4) as log:
        assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
        with pytest.raises(ValueError, match="step 2 after step 3"):
            log.write(2, {"a": 0.0})
        log.write(4, {"a": 40.0})
    assert [(line["step"], line["a"]) for line in lines(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert curve(tmp_path, "a") == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_a_run_that_starts_anew_sets_the_old_one_aside(tmp_path: Path) -> None:
    for run in (1, 2, 3):
        with RunLog(tmp_path) as log:
            for step in range(3 - run, 4 - run + 1):
                log.write(step, {"a": run})
    assert [json.loads(line)["a"] for line in (tmp_path / "metrics.1.jsonl").read_text().splitlines()] == [1, 1]
    assert [json.loads(line)["a"] for line in (tmp_path / "metrics.2.jsonl").read_text().splitlines()] == [2, 2]
    assert [(line["step"], line["a"]) for line in lines(tmp_path)] == curve(tmp_path, "a") == [(0, 3), (1, 3)]


def test_a_step_may_have_several_lines_and_steps_never_fall(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write(2, {"a": 1.0})
        log.write(2, {"b": 1.0})
        with pytest.raises(ValueError, match="step 1 after step 2"):
            log.write(1, {"b": 1.0})


def test_an_evaluation_of_the_checkpoint_comes_again(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write(0, {"held_out/mean": 0.1})
        log.write(1, {"loss": 1.0})
        log.write(1, {"held_out/mean": 0.2})
        log.write(2, {"loss": 2.0})
    with RunLog(tmp_path, resume_at=2) as log:
        log.write(1, {"held_out/mean": 0.2})
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 1]


def test_a_line_that_is_not_whole_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a"')
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == [{"step": 1, "a": 1.0}]
    with RunLog(tmp_path, resume_at=3) as log:
        log.write(3, {"a": 3.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]


KILLED = """
import os, signal, sys
from pathlib import Path
from baton.training.grpo.logs import RunLog
log = RunLog(Path(sys.argv[1]))
for step in range(1, 4):
    log.write(step, {"a": step})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_every_step(tmp_path: Path) -> None:
    path = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == -signal.SIGKILL
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert curve(tmp_path, "a") == [(1, 1), (2, 2), (3, 3)]


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    error_of(lambda: RunLog(tmp_path / "out"), "PYTHON_PACKAGE_MISSING")
    assert not (tmp_path / "out").exists()
