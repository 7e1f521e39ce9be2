"""TRL's tests that say nothing of BatonGRPOTrainer, or that it cannot pass, and why."""

from __future__ import annotations

REASONS: dict[str, str] = {}


def reason(node: str) -> str | None:
    """Why the test with this node id does not apply; None when it does."""
    return next((why for part, why in REASONS.items() if part in node), None)
