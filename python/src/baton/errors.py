"""The one error class of Baton: a stable code, and the four things that its reader needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from baton import cuda_errors, peer_errors

FIELDS = ("code", "message", "expected", "found", "action")


class BatonError(Exception):
    """Something that Baton cannot go on with.

    `code` is stable and upper case (`LOGPROB_MISMATCH`); the other fields are sentences or phrases for people:
    what went wrong, what was expected, what was found instead, and what to do about it.
    """

    def __init__(self, code: str, message: str, expected: str = "", found: str = "", action: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.expected = expected
        self.found = found
        self.action = action

    def __str__(self) -> str:
        lines = [f"{self.code}: {self.message}"]
        for name in ("expected", "found", "action"):
            value = getattr(self, name)
            if value:
                lines.append(f"  {name + ':':<10}{value}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return (BatonError, (self.code, self.message, self.expected, self.found, self.action))

    def to_wire(self) -> dict[str, str]:
        """The `failure` of the protocol."""
        return {name: getattr(self, name) for name in FIELDS}

    @classmethod
    def from_wire(cls, failure: Mapping[str, str]) -> BatonError:
        return cls(**{name: str(failure.get(name, "")) for name in FIELDS})

    @classmethod
    def from_exception(cls, error: BaseException, doing: str, *, away: bool = False) -> BatonError:
        """`error` itself when it is one of ours, else an `UNEXPECTED_ERROR` that carries its text.

        What a kernel did that CUDA ends a process for has codes of its own, whoever noticed it, and so has a connection
        to another rank that broke. `away`: the training state was given back for a rollout when the kernel ran.
        """
        text = error.found if isinstance(error, BatonError) else str(error)
        kernel = cuda_errors.kind_of(text)
        if kernel is not None:
            return cls.from_wire(cuda_errors.failure_of(kernel, text, doing, away=away))
        if isinstance(error, BatonError):
            return error
        ours = _failure_in(text)
        if ours is not None:
            return cls.from_wire(ours)
        if peer_errors.is_lost_peer(error):
            return cls.from_wire(peer_errors.failure_of(error, doing))
        return cls(
            "UNEXPECTED_ERROR",
            f"{doing} failed: {type(error).__name__}: {error}",
            expected="no exception",
            found=type(error).__name__,
            action="Read the traceback in the output of this process.",
        )


def _failure_in(text: str) -> Mapping[str, str] | None:
    """The failure that our allocator put into an error of torch, which can carry text only."""
    _, marker, rest = text.partition("training memory: {")
    if not marker:
        return None
    try:
        failure, _ = json.JSONDecoder().raw_decode("{" + rest)
    except ValueError:
        return None
    return failure if "code" in failure and "message" in failure else None
