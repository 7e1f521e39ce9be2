"""The completions that an evaluation has so far: one that was ended goes on from them.

A file of JSON lines in the output folder: first what it is an evaluation of, then each completion as it was judged. The
process that writes it holds a lock on it, which ends with the process, so there is one at a time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from baton.errors import BatonError
from baton.evaluation.report import Answered
from baton.output_folder import not_writable

NAME = "results.part.jsonl"


class _Row(msgspec.Struct, kw_only=True, frozen=True):
    problem: int
    sample: int
    answered: Answered


class Unfinished:
    """A context, inside of which no other process evaluates into `folder`. `answers`: by problem and sample."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], resume: bool) -> None:
        """`identity`: values of JSON. Without `resume` nothing is gone on from.

        Raises BatonError OUTPUT_IN_USE, OUTPUT_NOT_WRITABLE, or EVALUATION_MISMATCH where the completions there are of
        another evaluation.
        """
        self.path = folder / NAME
        self.answers: dict[tuple[int, int], Answered] = {}
        self._lock = threading.Lock()
        try:
            self._file = _locked(self.path)
            try:
                self._begin(dict(identity), resume)
            except BaseException:
                os.close(self._file)
                raise
        except OSError as error:
            raise not_writable(self.path, error) from error

    def add(self, problem: int, sample: int, answered: Answered) -> None:
        """From any thread. Raises BatonError OUTPUT_NOT_WRITABLE."""
        row = _Row(problem=problem, sample=sample, answered=answered)
        with self._lock:
            self._append(msgspec.json.encode(row) + b"\n")
            self.answers[problem, sample] = answered

    def remove(self) -> None:
        """When the results are elsewhere."""
        self.path.unlink()

    def __enter__(self) -> Unfinished:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:  # what is judged later finds no file, and not another one under its number
            if not self.answers:
                self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1

    def _begin(self, identity: dict[str, Any], resume: bool) -> None:
        first, *lines = self.path.read_bytes().splitlines(keepends=True) or [b""]
        size = len(first)
        if resume and lines:
            self._compare(_theirs(first), identity)
            for line in lines:
                row = _row(line)
                # The end of one that was killed while it wrote.
                if row is None:
                    break
                self.answers[row.problem, row.sample] = row.answered
                size += len(line)
        if self.answers:
            os.ftruncate(self._file, size)
            return
        os.ftruncate(self._file, 0)
        self._append(msgspec.json.encode(identity) + b"\n")

    def _compare(self, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise BatonError(
                    "EVALUATION_MISMATCH",
                    f"The unfinished evaluation in {self.path.parent} is another: its {name} is not this one's.",
                    expected=f"{name}: {theirs.get(name, 'unknown')}",
                    found=f"{name}: {value}",
                    action="Evaluate as before to go on with it, choose another --out, or begin anew with --no-resume.",
                )

    def _append(self, line: bytes) -> None:
        """Into the kernel at once: a process that is killed loses nothing of it."""
        try:
            written = os.write(self._file, line)
            if written < len(line):
                os.ftruncate(self._file, os.fstat(self._file).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise not_writable(self.path, error) from error


def _locked(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one who had it may have removed it meanwhile.
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
        except BlockingIOError as error:
            os.close(file)
            raise BatonError(
                "OUTPUT_IN_USE",
                f"Another evaluation is writing to {path.parent}.",
                expected="a folder for this one",
                found=f"a process that holds {path}",
                action="Choose another folder with --out, or wait until the other one has ended.",
            ) from error
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _theirs(line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {}


def _row(line: bytes) -> _Row | None:
    try:
        return msgspec.json.decode(line, type=_Row) if line.endswith(b"\n") else None
    except msgspec.MsgspecError:
        return None
