from __future__ import annotations

import io
import re
import time

import pytest

from baton.building import Building


class Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def built(screen: Screen, seconds: float) -> str:
    with Building("a thing", screen, every_seconds=0.05):
        time.sleep(seconds)
    return screen.getvalue()


def test_a_log_gets_whole_lines_and_few_of_them():
    lines = built(Screen(terminal=False), 0.18).splitlines()
    assert lines[0] == "baton.prepare: building a thing …"
    assert len(lines) > 2
    assert all(re.fullmatch(r"baton\.prepare: building a thing … \d+ s", line) for line in lines[1:-1])
    assert re.fullmatch(r"baton\.prepare: a thing: 0\.\d s", lines[-1])


def test_a_terminal_gets_one_line_that_is_written_over():
    text = built(Screen(terminal=True), 0.18)
    assert text.count("\n") == 1
    assert text.endswith(" s\n")
    assert text.count("\r\x1b[K") >= 4


def test_what_is_built_at_once_is_not_told_about_twice():
    assert built(Screen(terminal=False), 0).count("\n") == 2


def test_a_build_that_fails_says_when():
    screen = Screen(terminal=False)
    with pytest.raises(ValueError, match="broken"), Building("a thing", screen):
        raise ValueError("broken")
    assert screen.getvalue().splitlines()[-1] == "baton.prepare: a thing: failed after 0 s"
