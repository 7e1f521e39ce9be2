"""What the evaluation and the processes of its engines tell each other: a line of JSON each."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec


class Job(msgspec.Struct, kw_only=True, rename="camel", frozen=True):
    """Everything that an engine's process is to do, its only input."""

    engine: Literal["vllm", "transformers"]
    model: str
    dtype: str
    tensor_parallel: int
    #: Sequences at once.
    batch_size: int
    #: Longest prompt and completion together, in tokens.
    length: int
    max_tokens: int
    #: 0: the likeliest token.
    temperature: float
    #: 0: all tokens.
    top_k: int
    top_p: float
    min_p: float
    seed: int
    stop_token_ids: list[int]
    #: Numbers of the problems, which the seeds of their samples depend on, and their prompts.
    problems: list[int]
    prompts: list[list[int]]
    #: Of each prompt the numbers of its samples, which their seeds depend on too.
    samples: list[list[int]]


class Ready(msgspec.Struct, kw_only=True, rename="camel", tag="ready", frozen=True):
    """The model is loaded."""


class Moved(msgspec.Struct, kw_only=True, rename="camel", tag="moved", frozen=True):
    """A token was added to every sample under way: the engine is at work."""


class Done(msgspec.Struct, kw_only=True, rename="camel", tag="done", frozen=True):
    """One sample, with the token that ended it."""

    problem: int
    sample: int
    tokens: list[int]
    finish: Literal["stop", "length"]


class Finished(msgspec.Struct, kw_only=True, rename="camel", tag="finished", frozen=True):
    """All samples were sent."""


class Failed(msgspec.Struct, kw_only=True, rename="camel", tag="failed", frozen=True):
    """A failure as on every wire of Baton."""

    failure: dict[str, str]


Reply: TypeAlias = Ready | Moved | Done | Finished | Failed
