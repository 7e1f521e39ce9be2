"""Signs of life while something is compiled, which can take minutes: the seconds so far."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TextIO

#: On a terminal one line is written over; in a log each sign is a line of its own, so they are few.
TERMINAL_SECONDS = 1.0
LOG_SECONDS = 15.0
_CLEAR = "\r\x1b[K"


class Building:
    """The time in which `what` is built, as a context. One that is over before the first sign is one line."""

    def __init__(self, what: str, screen: TextIO | None = None, every_seconds: float | None = None) -> None:
        self._what = what
        self._screen = screen or sys.stderr
        self._live = self._screen.isatty()
        self._every = every_seconds or (TERMINAL_SECONDS if self._live else LOG_SECONDS)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="baton-building", daemon=True)
        self._begin = 0.0

    def __enter__(self) -> Building:
        self._begin = time.perf_counter()
        self._write(f"building {self._what} …", passing=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        seconds = time.perf_counter() - self._begin
        how = f"{seconds:.1f} s" if kind is None else f"failed after {seconds:.0f} s"
        self._write(f"{self._what}: {how}", passing=False)

    def _tell(self) -> None:
        while not self._over.wait(self._every):
            seconds = time.perf_counter() - self._begin
            self._write(f"building {self._what} … {seconds:.0f} s", passing=True)

    def _write(self, line: str, *, passing: bool) -> None:
        """`passing`: the next line takes its place, where that can be."""
        end = "" if passing and self._live else "\n"
        self._screen.write(f"{_CLEAR if self._live else ''}baton.prepare: {line}{end}")
        self._screen.flush()
