"""Options and data of these tests, and the error that a call ends with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baton.errors import BatonError
from baton.training.grpo.options import GrpoOptions, options_from


def recipe(**changes: Any) -> dict[str, Any]:
    """The `grpo` part of a recipe; `data` is joined with what it needs."""
    data = {"files": ["train.jsonl"], **changes.pop("data", {})}
    base = {"model": "model", "output": "out", "data": data, "rewards": [{"function": "exact_match"}]}
    return base | changes


def options(**changes: Any) -> GrpoOptions:
    return options_from(recipe(**changes))


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def error_of(call: Callable[[], Any], code: str) -> BatonError:
    with pytest.raises(BatonError) as caught:
        call()
    assert caught.value.code == code, str(caught.value)
    assert all(caught.value.to_wire().values())
    return caught.value
