"""Names of tensors that are like another one, for errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str], whose: str) -> str:
    """A clause with the most similar of `names`: a wrong prefix, a renamed or a missing tensor shows in it."""
    known = list(names)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"the nearest of {whose}: {', '.join(near)}" if near else f"none of {whose} ({len(known)}) is near"
