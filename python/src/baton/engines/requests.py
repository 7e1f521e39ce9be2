"""What every engine asks of the requests that it gets."""

from __future__ import annotations

from collections.abc import Sequence

from baton.engines.adapter import Request
from baton.errors import BatonError


def check_requests(requests: Sequence[Request], length: int, vocabulary: int) -> None:
    """Raises BatonError PROMPT_TOO_LONG, PROMPT_EMPTY or PROMPT_TOKEN_UNKNOWN."""
    for number, request in enumerate(requests):
        tokens = len(request.prompt)
        if not 0 < tokens < length:
            raise BatonError(
                "PROMPT_TOO_LONG" if tokens else "PROMPT_EMPTY",
                f"Prompt {number} has {tokens} tokens.",
                expected=f"1 to {length - 1} tokens, so that one can be generated",
                found=f"{tokens} tokens",
                action="Shorten the prompt, or raise the engine's maximum model length.",
            )
        largest = int(request.prompt.max())
        if largest >= vocabulary:
            raise BatonError(
                "PROMPT_TOKEN_UNKNOWN",
                f"Prompt {number} has token {largest}, which the model does not know.",
                expected=f"tokens below {vocabulary}",
                found=str(largest),
                action="Use the tokenizer that belongs to the model.",
            )
