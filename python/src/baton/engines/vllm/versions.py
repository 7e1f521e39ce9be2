"""Which vLLM is here, and whether this adapter knows it."""

from __future__ import annotations

import importlib.metadata
import re

from baton.errors import BatonError

#: (major, minor), first and last. All of them stand on torch 2.11. The adapter was tried on the last.
FIRST, LAST = (0, 20), (0, 26)
KNOWN = f"vLLM {FIRST[0]}.{FIRST[1]} to {LAST[0]}.{LAST[1]}"


def require(version: str | None = None) -> tuple[int, int]:
    """(major, minor) of the installed vLLM, or of `version`.

    Raises BatonError VLLM_MISSING, or VLLM_VERSION for one that this adapter does not know.
    """
    found = version if version is not None else _installed()
    if found is None:
        raise BatonError(
            "VLLM_MISSING",
            "The engine's kind is vllm, and vLLM is not installed in this Python.",
            expected=KNOWN,
            found="no package named vllm",
            action="Install it with `pip install vllm==0.26.0`, or use `engine.kind: small` for a small model.",
        )
    match = re.match(r"(\d+)\.(\d+)", found)
    pair = (int(match[1]), int(match[2])) if match else None
    if pair is None or not FIRST <= pair <= LAST:
        raise BatonError(
            "VLLM_VERSION",
            f"Baton does not know this version of vLLM: {found}.",
            expected=KNOWN,
            found=f"vLLM {found}",
            action="Install a version that Baton knows, for instance `pip install vllm==0.26.0`.",
        )
    return pair


def _installed() -> str | None:
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        pass
    try:  # unpacked without its metadata
        from vllm._version import __version__  # pyright: ignore
    except ImportError:
        return None
    return str(__version__)
