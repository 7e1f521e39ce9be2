"""What an engine must be able to do: the seam between Baton and an inference engine.

One engine is one process with one worker process per tensor-parallel rank. The engine process talks to the
controller (`baton.engines.process`) and calls the adapter; the adapter reaches its workers by `collective`.
The small engine and the vLLM adapter both implement this class, and nothing else of them is seen by Baton.

Life cycle, every call with a deadline in seconds:

    start -> sleep -> (wake(["weights"]) -> collective("baton_sync", …) -> wake(["kv_cache"])
                       -> generate … -> sleep)* -> close

After `start` the engine is awake. While it is asleep (level 2) it holds neither weights nor cache, and the
addresses of both stay reserved. A request is only given to it when both are awake.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

WakeTag = Literal["weights", "kv_cache"]


@dataclass(frozen=True)
class EngineConfig:
    """How to build one engine."""

    #: Position of this engine on the node, from 0.
    index: int
    #: Directory with config.json (Hugging Face layout); weights in it are not needed, the trainer sends them.
    model: str
    tensor_parallel: int
    #: GPU of each worker, one per tensor-parallel rank.
    devices: tuple[int, ...]
    dtype: Literal["float32", "bfloat16", "float16"]
    #: Longest prompt plus completion, in tokens.
    max_model_length: int
    #: Sequences that are generated at once.
    max_sequences: int
    #: Bytes of KV cache on each GPU; None: what `max_sequences` sequences of full length need.
    cache_bytes: int | None = None
    #: How weights get into the engine: by copies, learned from `load_weights`, or by that itself at every sync.
    sync: Literal["copies", "load_weights"] = "copies"
    #: Engine-specific options, unchanged from the recipe.
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineInfo:
    """What a started engine is. Sizes are bytes on each GPU."""

    tensor_parallel: int
    dtype: Literal["float32", "bfloat16", "float16"]
    weight_bytes: int
    cache_bytes: int
    max_model_length: int
    vocabulary_size: int

    @classmethod
    def of(cls, config: EngineConfig, workers: Sequence[Mapping[str, int]]) -> EngineInfo:
        """`workers`: for each its weight_bytes, cache_bytes and vocabulary_size; the largest count for all."""
        return cls(
            config.tensor_parallel,
            config.dtype,
            max(worker["weight_bytes"] for worker in workers),
            max(worker["cache_bytes"] for worker in workers),
            config.max_model_length,
            workers[0]["vocabulary_size"],
        )


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy. Logprobs are those at this temperature, before anything is cut off."""

    temperature: float
    #: 0: all tokens.
    top_k: int
    top_p: float
    min_p: float
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    #: Seed of the whole call; sample k of a request draws from a stream derived from (seed, stream, k) only,
    #: so that the result does not depend on the batch it was in.
    seed: int


@dataclass(frozen=True)
class Request:
    """One prompt and how many samples of it are wanted."""

    prompt: npt.NDArray[np.uint32]
    samples: int
    stream: int


@dataclass(frozen=True)
class Sample:
    """One completion: tokens (the stop token included when one ended it) and a logprob for each of them."""

    tokens: npt.NDArray[np.uint32]
    logprobs: npt.NDArray[np.float32]
    finish: Literal["stop", "length"]


class EngineAdapter(ABC):
    """One inference engine with its workers. All calls come from one thread."""

    @abstractmethod
    def start(self, config: EngineConfig, deadline: float) -> EngineInfo:
        """Starts the workers, builds the model, records the copies of `load_weights`. Leaves it awake."""

    @abstractmethod
    def sleep(self, level: int, deadline: float) -> list[int | None]:
        """Gives weights and cache back. Returns the bytes each worker still holds on its GPU (None: unknown)."""

    @abstractmethod
    def wake(self, tags: Sequence[WakeTag], deadline: float) -> None:
        """Maps weights or cache again, at the same addresses. Weights first. Content is undefined until synced."""

    @abstractmethod
    def collective(self, method: str, *args: Any, deadline: float) -> list[Any]:
        """Calls `method` on every worker and returns their answers by tensor-parallel rank.

        Arguments and answers are MessagePack values. The methods are those of `baton.weights.receiver.Receiver`.
        """

    @abstractmethod
    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_progress: Callable[[int, int], None],
    ) -> list[list[Sample]]:
        """Completions by request, then by sample. Calls `on_progress(finished_samples, generated_tokens)` often.

        The KV cache of earlier weights is never reused. Raises `baton.errors.BatonError` for a prompt that does
        not fit.
        """

    @abstractmethod
    def worker_pids(self) -> list[int]:
        """Process ids by tensor-parallel rank."""

    @abstractmethod
    def close(self, deadline: float) -> None:
        """Ends the workers; nothing of them is left."""
