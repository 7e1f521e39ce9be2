"""Requests and samples as MessagePack values, between the engine process and its workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from baton.engines.adapter import Request, Sample, Sampling


def pack_requests(requests: Sequence[Request], sampling: Sampling) -> dict[str, Any]:
    return {
        "tokens": _joined([request.prompt for request in requests], np.uint32),
        "lengths": np.array([len(request.prompt) for request in requests], dtype=np.uint32).tobytes(),
        "samples": np.array([request.samples for request in requests], dtype=np.uint32).tobytes(),
        "streams": np.array([request.stream for request in requests], dtype=np.uint64).tobytes(),
        "sampling": asdict(sampling),
    }


def unpack_requests(packed: dict[str, Any]) -> tuple[list[Request], Sampling]:
    prompts = _split(packed["tokens"], np.uint32, packed["lengths"])
    samples = np.frombuffer(packed["samples"], dtype=np.uint32).tolist()
    streams = np.frombuffer(packed["streams"], dtype=np.uint64).tolist()
    sampling = dict(packed["sampling"])
    sampling["stop_token_ids"] = tuple(sampling["stop_token_ids"])
    requests = [Request(*each) for each in zip(prompts, samples, streams, strict=True)]
    return requests, Sampling(**sampling)


def pack_samples(completions: Sequence[Sequence[Sample]]) -> dict[str, Any]:
    samples = [sample for group in completions for sample in group]
    return {
        "counts": np.array([len(group) for group in completions], dtype=np.uint32).tobytes(),
        "lengths": np.array([len(sample.tokens) for sample in samples], dtype=np.uint32).tobytes(),
        "tokens": _joined([sample.tokens for sample in samples], np.uint32),
        "logprobs": _joined([sample.logprobs for sample in samples], np.float32),
        "stopped": np.array([sample.finish == "stop" for sample in samples], dtype=np.uint8).tobytes(),
    }


def unpack_samples(packed: dict[str, Any]) -> list[list[Sample]]:
    tokens = _split(packed["tokens"], np.uint32, packed["lengths"])
    logprobs = _split(packed["logprobs"], np.float32, packed["lengths"])
    samples = [
        Sample(tokens[i], logprobs[i], "stop" if stopped else "length") for i, stopped in enumerate(packed["stopped"])
    ]
    ends = np.cumsum(np.frombuffer(packed["counts"], dtype=np.uint32)).tolist()
    return [samples[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _joined(parts: Sequence[Any], dtype: Any) -> bytes:
    return np.concatenate(parts).astype(dtype).tobytes() if parts else b""


def _split(binary: bytes, dtype: Any, lengths: bytes) -> list[Any]:
    ends = np.cumsum(np.frombuffer(lengths, dtype=np.uint32))
    return np.split(np.frombuffer(binary, dtype=dtype), ends[:-1]) if len(ends) else []
