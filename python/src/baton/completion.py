"""What a training script gives to a rollout and gets back from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from baton.errors import BatonError
from baton.protocol import arrays
from baton.protocol.messages import Completions
from baton.protocol.messages import Sampling as WireSampling

U32s = npt.NDArray[np.uint32]
F32s = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """How to sample. `n` completions a prompt, of at most `max_tokens` tokens each.

    `temperature` 0 is greedy. `seed` None: drawn by the controller, a new one for each call.
    """

    max_tokens: int
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        problems = [
            text
            for wrong, text in (
                (self.max_tokens < 1, f"max_tokens {self.max_tokens}"),
                (self.n < 1, f"n {self.n}"),
                (self.temperature < 0, f"temperature {self.temperature}"),
                (not 0 < self.top_p <= 1, f"top_p {self.top_p}"),
                (self.seed is not None and self.seed < 0, f"seed {self.seed}"),
            )
            if wrong
        ]
        if problems:
            raise BatonError(
                "BAD_SAMPLING",
                "The sampling parameters make no sense.",
                expected="max_tokens >= 1, n >= 1, temperature >= 0, 0 < top_p <= 1, seed >= 0 or None",
                found=", ".join(problems),
                action="Correct the Sampling given to rollout.generate().",
            )

    def to_wire(self) -> WireSampling:
        return WireSampling(
            n=self.n,
            temperature=float(self.temperature),
            top_p=float(self.top_p),
            max_tokens=self.max_tokens,
            stop_token_ids=[int(token) for token in self.stop_token_ids],
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
    values = np.asarray(prompt)
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "iu" or int(values.min()) < 0:
        raise BatonError(
            "BAD_PROMPT",
            f"Prompt {position} is not a list of token ids.",
            expected="at least one token id, each 0 or more",
            found=f"shape {values.shape}, type {values.dtype}",
            action="Give rollout.generate() token ids, one list for each prompt.",
        )
    return values.astype(np.uint32)


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
