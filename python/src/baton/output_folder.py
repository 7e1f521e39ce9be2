"""Folders that results are written to."""

from __future__ import annotations

from pathlib import Path

from baton.errors import BatonError


def not_writable(path: Path, error: OSError) -> BatonError:
    return BatonError(
        "OUTPUT_NOT_WRITABLE",
        f"{path} cannot be written.",
        expected="a folder to write to",
        found=error.strerror or str(error),
        action="Choose another folder with --out, or make room.",
    )
