"""Which TRL is here, and whether its GRPOTrainer is the one that was read and is tested against."""

from __future__ import annotations

import importlib.metadata

from baton.errors import BatonError

#: Release line; the trainer stands on TRL's inner parts, which change between lines.
LINE = "1.16."
_ACTION = "Run: pip install 'trl==1.16.*'"


def require() -> None:
    """Raises BatonError PYTHON_PACKAGE_MISSING or UNSUPPORTED_TRL."""
    try:
        found = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError as error:
        raise BatonError(
            "PYTHON_PACKAGE_MISSING",
            "baton.trl extends TRL's GRPOTrainer, and TRL is not installed.",
            expected=f"the packages of gpu-baton[trl], TRL {LINE}x",
            found="no package trl",
            action=_ACTION,
        ) from error
    if not found.startswith(LINE):
        raise BatonError(
            "UNSUPPORTED_TRL",
            "BatonGRPOTrainer does not know this version of TRL.",
            expected=f"TRL {LINE}x",
            found=f"TRL {found}",
            action=f"{_ACTION}, or a newer Baton.",
        )
