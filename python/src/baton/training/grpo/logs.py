"""What a run reports, step by step: `metrics.jsonl` and event files for TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from baton.errors import BatonError

FILE = "metrics.jsonl"
EVALUATION = "held_out"  # names of an evaluation begin with it
EVENTS = "tensorboard"  # folder


class RunLog:
    """Writes to `folder`; on a rank that is not `enabled` it does nothing.

    A run that starts anew (`resume_at` None) sets an older run's metrics aside, as `metrics.1.jsonl` and so on. A
    resumed one writes its first line for step `resume_at`: what stands there of that step and later ones is cut, in
    TensorBoard hidden. So is an evaluation of the step before, which comes again.
    """

    def __init__(self, folder: Path, enabled: bool = True, resume_at: int | None = None) -> None:
        self._file: Any = None
        self._writer: Any = None
        self._last: int | None = None
        if not enabled:
            return
        writer = _summary_writer()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        if path.exists():
            if resume_at is None:
                path.rename(_unused(folder))
            else:
                self._last = _cut(path, resume_at)
        self._file = path.open("ab", buffering=0)
        self._writer = writer(str(folder / EVENTS), purge_step=resume_at or 0)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """One line, on disk or not at all if this process dies. Names are grouped, like `reward/mean`.

        None and numbers that are not finite are unknown: null in the file, no point in TensorBoard. Steps never fall; a
        step may have several lines, such as one of an evaluation.
        """
        if self._file is None:
            return
        if self._last is not None and step < self._last:
            raise ValueError(f"step {step} after step {self._last}")
        known = {name: _known(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **known}).encode() + b"\n")
        self._last = step
        for name, value in known.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._writer.close()
            self._file = self._writer = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a `metrics.jsonl`. A last one that is not whole, from a machine that stopped, is left out."""
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield json.loads(line)


def _known(value: float | None) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _cut(path: Path, step: int) -> int | None:
    """Keeps the lines before `step`, all or none of the change; returns the last step that is left."""
    kept = [line for line in read_metrics(path) if line["step"] < step - _evaluates(line)]
    draft = path.with_suffix(".part")
    with draft.open("wb") as file:
        file.writelines(json.dumps(line).encode() + b"\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return kept[-1]["step"] if kept else None


def _evaluates(line: Mapping[str, Any]) -> bool:
    return any(name.startswith(EVALUATION) for name in line)


def _unused(folder: Path) -> Path:
    number = 1
    while (folder / f"metrics.{number}.jsonl").exists():
        number += 1
    return folder / f"metrics.{number}.jsonl"


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BatonError(
            "PYTHON_PACKAGE_MISSING",
            "TensorBoard's event files cannot be written.",
            expected="the packages of gpu-baton[grpo]",
            found=str(error),
            action="Run `baton setup`, or: pip install tensorboard",
        ) from error
    return SummaryWriter
