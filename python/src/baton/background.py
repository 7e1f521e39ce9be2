"""Work in a thread of its own, whose end and exception are for whoever joins it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Starts `work` at once. A daemon: a process that ends does not wait for it."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def join(self) -> None:
        """Waits for the end. Raises what the work raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
