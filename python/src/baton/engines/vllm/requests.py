"""Requests and completions between Baton and vLLM's engine loop, free of vLLM itself."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from baton.engines.adapter import Request, Sample, Sampling
from baton.errors import BatonError

_FINISH = {"stop": "stop", "length": "length"}


def seed_of(seed: int, stream: int, sample: int) -> int:
    """Seed of sample `sample` of the request with this `stream`: depends on nothing else. 62 bits."""
    text = struct.pack("<QQQ", seed % 2**64, stream % 2**64, sample)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 2


def logits_divisor(sampling: Sampling) -> float:
    """What logits are divided by before vLLM sees them. It reports logprobs before temperature; Baton's are those at
    the temperature, before anything is cut off, so the temperature is applied to the logits and vLLM samples at 1."""
    return sampling.temperature if sampling.temperature > 0 else 1.0


def parameters(sampling: Sampling, request: Request, sample: int, max_model_length: int) -> dict[str, Any]:
    """Keyword arguments of vLLM's SamplingParams for one sample."""
    greedy = sampling.temperature == 0
    return {
        "n": 1,
        "temperature": 0.0 if greedy else 1.0,
        "top_k": 0 if greedy else sampling.top_k,
        "top_p": 1.0 if greedy else sampling.top_p,
        "min_p": 0.0 if greedy else sampling.min_p,
        "max_tokens": max(1, min(sampling.max_tokens, max_model_length - len(request.prompt))),
        "stop_token_ids": list(sampling.stop_token_ids),
        "seed": None if greedy else seed_of(sampling.seed, request.stream, sample),
        # What ends a completion is in stop_token_ids; the model's configuration adds nothing.
        "ignore_eos": True,
        # 0: of the sampled token only.
        "logprobs": 0,
        "detokenize": False,
    }


class Collector:
    """Puts the engine's outputs, a few tokens at a time, together to samples in the order of the requests."""

    def __init__(self, requests: Sequence[Request], prefix: str) -> None:
        self._prefix = prefix
        self._ids = [[f"{prefix}-{number}-{k}" for k in range(each.samples)] for number, each in enumerate(requests)]
        self._tokens: dict[str, list[int]] = {name: [] for names in self._ids for name in names}
        self._logprobs: dict[str, list[float]] = {name: [] for name in self._tokens}
        self._finish: dict[str, str] = {}
        self.generated = 0

    def names(self, number: int) -> list[str]:
        """Ids of the samples of request `number`."""
        return self._ids[number]

    def unfinished(self) -> list[str]:
        return [name for name in self._tokens if name not in self._finish]

    @property
    def finished(self) -> int:
        return len(self._finish)

    def add(
        self,
        name: str,
        tokens: Sequence[int],
        logprobs: Sequence[Mapping[int, Any]] | None,
        finish: str | None,
    ) -> None:
        """New tokens of one sample. Raises BatonError GENERATION_INCOMPLETE or LOGITS_NOT_FINITE."""
        if name not in self._tokens:
            return  # of a call before, ended early
        if len(logprobs or ()) != len(tokens):
            raise _incomplete(f"{len(tokens)} tokens with {len(logprobs or ())} logprobs")
        values = [float(each[token].logprob) for token, each in zip(tokens, logprobs or (), strict=True)]
        if any(np.isnan(values)):
            raise BatonError(
                "LOGITS_NOT_FINITE",
                "The model's output is not a distribution.",
                expected="finite logits",
                found="NaN",
                action="Look at the trainer: its weights have probably become NaN.",
            )
        self._tokens[name].extend(tokens)
        self._logprobs[name].extend(values)
        self.generated += len(tokens)
        if finish is not None:
            if finish not in _FINISH:
                raise _incomplete(f"a request that ended with {finish!r}")
            self._finish[name] = finish

    def samples(self) -> list[list[Sample]]:
        """By request, then by sample. Raises BatonError GENERATION_INCOMPLETE."""
        missing = self.unfinished()
        if missing:
            raise _incomplete(f"{len(missing)} requests without an end")
        return [
            [
                Sample(
                    np.array(self._tokens[name], dtype=np.uint32),
                    np.array(self._logprobs[name], dtype=np.float32),
                    "stop" if self._finish[name] == "stop" else "length",
                )
                for name in names
            ]
            for names in self._ids
        ]


def _incomplete(found: str) -> BatonError:
    return BatonError(
        "GENERATION_INCOMPLETE",
        "vLLM did not finish a request as asked.",
        expected="every token with its logprob, up to a stop token or the length",
        found=found,
        action="Read the output of the engine; if it says nothing, please report this.",
    )
