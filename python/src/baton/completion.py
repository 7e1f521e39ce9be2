"""What a training script gives to a rollout and gets back from it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from baton.errors import BatonError
from baton.protocol import arrays
from baton.protocol.messages import Completions
from baton.protocol.messages import Sampling as WireSampling

U32s = npt.NDArray[np.uint32]
F32s = npt.NDArray[np.float32]

_MOST_U32 = 2**32 - 1
#: vLLM's sampler has such numbers for top_k.
_MOST_I32 = 2**31 - 1
#: The controller is JavaScript, whose numbers are exact so far.
MOST_SEED = 2**53 - 1
#: Name, least and most of the whole numbers among the sampling parameters.
_WHOLE = (("max_tokens", 1, _MOST_U32), ("n", 1, _MOST_U32), ("top_k", 0, _MOST_I32), ("seed", 0, MOST_SEED))
#: Name of the others, and which are allowed.
_REAL: tuple[tuple[str, Callable[[float], bool]], ...] = (
    ("temperature", lambda value: value >= 0),
    ("top_p", lambda value: 0 < value <= 1),
    ("min_p", lambda value: 0 <= value <= 1),
)


@dataclass(frozen=True)
class Sampling:
    """How to sample. `n` completions a prompt, of at most `max_tokens` tokens each.

    `temperature` 0 is greedy. Samples are drawn from tokens at least `min_p` times as likely as the likeliest, of
    these the `top_k` likeliest (0: all), and of these the fewest that have `top_p` of their probability; logprobs are
    those before any of this. `seed` None: drawn by the controller, a new one for each call.
    """

    max_tokens: int
    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        problems: list[str] = []
        for name, least, most in _WHOLE:
            value = getattr(self, name)
            if name == "seed" and value is None:
                continue
            whole = _whole(value, least, most)
            if whole is None:
                problems.append(f"{name} {value!r}")
            else:
                object.__setattr__(self, name, whole)
        for name, allowed in _REAL:
            value = getattr(self, name)
            real = _real(value)
            if real is None or not allowed(real):
                problems.append(f"{name} {value!r}")
            else:
                object.__setattr__(self, name, real)
        stop = _token_ids(self.stop_token_ids)
        if stop is None:
            problems.append(f"stop_token_ids {self.stop_token_ids!r}")
        else:
            object.__setattr__(self, "stop_token_ids", stop)
        if problems:
            raise BatonError(
                "BAD_SAMPLING",
                "The sampling parameters make no sense.",
                expected=(
                    "whole numbers max_tokens >= 1, n >= 1 and top_k >= 0; "
                    "temperature >= 0, 0 < top_p <= 1, 0 <= min_p <= 1; "
                    f"token ids in stop_token_ids; seed from 0 to {MOST_SEED}, or None"
                ),
                found=", ".join(problems),
                action="Correct the Sampling given to rollout.generate().",
            )

    def to_wire(self) -> WireSampling:
        return WireSampling(
            n=self.n,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            max_tokens=self.max_tokens,
            stop_token_ids=list(self.stop_token_ids),
            seed=self.seed,
        )


@dataclass(frozen=True)
class Completion:
    """One sample of one prompt: tokens (with the stop token that ended it) and the logprob of each of them.

    `prompt` and `sample` are positions, from 0. `weight_epoch` is the optimizer step whose weights made it.
    """

    prompt: int
    sample: int
    tokens: U32s
    logprobs: F32s
    finish: Literal["stop", "length"]
    weight_epoch: int


def prompt_array(prompt: Sequence[int] | npt.NDArray[np.integer], position: int) -> U32s:
    """Token ids as u32. Accepts lists, arrays and one-dimensional tensors. Raises BatonError BAD_PROMPT."""
    try:
        values = np.asarray(prompt)
    except (TypeError, ValueError) as error:  # lists of different lengths, a tensor on a GPU
        raise _bad_prompt(position, str(error)) from error
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "iu":
        raise _bad_prompt(position, f"shape {values.shape}, type {values.dtype}")
    least, most = int(values.min()), int(values.max())
    if least < 0 or most > _MOST_U32:  # astype would wrap it into another token
        raise _bad_prompt(position, f"token id {least if least < 0 else most}")
    return values.astype(np.uint32)


def _bad_prompt(position: int, found: str) -> BatonError:
    return BatonError(
        "BAD_PROMPT",
        f"Prompt {position} is not a list of token ids.",
        expected=f"at least one token id, each from 0 to {_MOST_U32}",
        found=found,
        action="Give rollout.generate() token ids, one list for each prompt.",
    )


def completions_from(message: Completions, prompts: int, samples: int) -> list[Completion]:
    """The completions in a controller's answer, ordered by prompt, then by sample."""
    lengths = arrays.u32s(message.lengths, "lengths").astype(np.int64)
    tokens = arrays.u32s(message.tokens, "tokens")
    logprobs = arrays.f32s(message.logprobs, "logprobs")
    finish = arrays.u8s(message.finish, "finish")
    expected = prompts * samples
    total = int(lengths.sum())
    if not (lengths.size == finish.size == expected and tokens.size == logprobs.size == total):
        raise BatonError(
            "PROTOCOL_ERROR",
            "The completions do not fit the prompts.",
            expected=f"{expected} completions with a logprob for each token",
            found=f"{lengths.size} lengths ({total} tokens), {tokens.size} tokens, {logprobs.size} logprobs",
            action="Use the same version of Baton in every process of the run.",
        )
    return [
        Completion(
            prompt=index // samples,
            sample=index % samples,
            tokens=tokens[begin:end],
            logprobs=logprobs[begin:end],
            finish="stop" if finish[index] == 0 else "length",
            weight_epoch=message.epoch,
        )
        for index, (begin, end) in enumerate(_spans(lengths))
    ]


def _spans(lengths: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    begin = 0
    for length in lengths:
        yield begin, begin + int(length)
        begin += int(length)


def _whole(value: Any, least: int, most: int) -> int | None:
    """As an int, from numpy too; None when it is no whole number in these bounds. True is not the number 1."""
    try:
        whole = operator.index(value)
    except TypeError:
        return None
    return whole if not isinstance(value, bool) and least <= whole <= most else None


def _real(value: Any) -> float | None:
    """As a float, when it is a finite number; a text that reads like one is not."""
    if isinstance(value, (bool, np.bool_, str, bytes)):
        return None
    try:
        real = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return real if math.isfinite(real) else None


def _token_ids(values: Any) -> tuple[int, ...] | None:
    try:
        tokens = [_whole(value, 0, _MOST_U32) for value in values]
    except TypeError:
        return None
    known = tuple(token for token in tokens if token is not None)
    return known if len(known) == len(tokens) else None
