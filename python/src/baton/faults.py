"""Faults on purpose: `BATON_FAULTS=<point>[@n][:argument],…` makes the n-th pass of a point go wrong.

A point is a name in the code, such as `worker.sync.flip-bit`. Without `@n` every pass of it is a fault. Tests use
this to prove that a check which guards the training really fails when it must.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from baton.errors import BatonError


@dataclass(frozen=True)
class Fault:
    """One rule. `nth` counts the passes of the point from 1; None: all of them."""

    point: str
    nth: int | None
    argument: str


def parse(text: str) -> tuple[Fault, ...]:
    """The rules in a BATON_FAULTS text. Raises BatonError BAD_FAULT_RULE."""
    faults: list[Fault] = []
    for rule in filter(None, (part.strip() for part in text.split(","))):
        head, _, argument = rule.partition(":")
        point, at, number = head.partition("@")
        if not point or (at and not (number.isdigit() and int(number) > 0)):
            raise BatonError(
                "BAD_FAULT_RULE",
                f"BATON_FAULTS has a rule that cannot be read: {rule!r}.",
                expected="<point>[@<number from 1>][:<argument>]",
                found=rule,
                action="Correct BATON_FAULTS or unset it.",
            )
        faults.append(Fault(point, int(number) if at else None, argument))
    return tuple(faults)


class Faults:
    """Rules with a count of the passes of every point. Safe to use from several threads."""

    def __init__(self, rules: tuple[Fault, ...]) -> None:
        self._rules = rules
        self._passes: dict[str, int] = {}
        self._lock = threading.Lock()

    def hit(self, point: str) -> Fault | None:
        """Counts a pass of `point`; the rule that makes this pass a fault, or None."""
        if not self._rules:
            return None
        with self._lock:
            passes = self._passes.get(point, 0) + 1
            self._passes[point] = passes
        for rule in self._rules:
            if rule.point == point and rule.nth in (None, passes):
                return rule
        return None


_faults: Faults | None = None


def hit(point: str) -> Fault | None:
    """Whether this pass of `point` shall fail, by the BATON_FAULTS of this process."""
    global _faults
    if _faults is None:
        _faults = Faults(parse(os.environ.get("BATON_FAULTS", "")))
    return _faults.hit(point)
