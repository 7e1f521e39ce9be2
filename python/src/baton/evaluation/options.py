"""What `baton eval` was asked for, from the command line, and what does not make sense in it."""

from __future__ import annotations

from typing import Literal

import msgspec

from baton.completion import MOST_SEED
from baton.errors import BatonError
from baton.evaluation.estimates import CONFIDENCE

#: Seconds that a comparison may take.
JUDGE_S = 5.0


class EvalOptions(msgspec.Struct, kw_only=True, rename="camel", forbid_unknown_fields=True, frozen=True):
    """Options by the names of `baton eval --help`. None: as it says there for an option that is not given."""

    model: str
    data: str
    out: str
    base: str | None = None
    problem_column: str | None = None
    answer_column: str | None = None
    limit: int | None = None
    template: str | None = None
    system: str | None = None
    chat: bool = True
    samples: int = 1
    k: list[int] | None = None
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    max_tokens: int | None = None
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    tp: int = 1
    batch_size: int | None = None
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    confidence: float = CONFIDENCE
    #: Whether to go on from the completions that an evaluation of the same has left in `out`.
    resume: bool = True
    #: Minutes until an engine has loaded the model, and from one token of a batch to the next.
    start_deadline: float = 30.0
    stall_deadline: float = 10.0
    #: Seconds of a comparison with an answer, after which the completion is wrong.
    judge_deadline: float = JUDGE_S

    @property
    def ks(self) -> list[int]:
        """The k of each pass@k: 1 and the number of samples where none were given."""
        return sorted(set(self.k if self.k is not None else [1, self.samples]))

    @property
    def heat(self) -> float:
        """The temperature: 0 for one sample, 1 for several, where none was given."""
        return self.temperature if self.temperature is not None else 0.0 if self.samples == 1 else 1.0

    def check(self) -> None:
        """Raises BatonError BAD_OPTIONS."""
        counts = {"--samples": self.samples, "--tp": self.tp, "--limit": self.limit}
        counts |= {"--max-tokens": self.max_tokens, "--batch-size": self.batch_size}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise _bad(name, "it is a number of things.", "a whole number from 1", str(count))
        for k in self.ks:
            if not 1 <= k <= self.samples:
                message = "pass@k is computed from at least k samples of each problem."
                raise _bad("--k", message, f"numbers from 1 to --samples {self.samples}", str(k))
        deadlines = {"--start-deadline": self.start_deadline, "--stall-deadline": self.stall_deadline}
        for name, deadline in (deadlines | {"--judge-deadline": self.judge_deadline}).items():
            if not deadline > 0.0:
                raise _bad(name, "nothing can be done by then.", "a number above 0", str(deadline))
        if not 0.0 <= self.heat < 100.0:
            raise _bad("--temperature", "it cannot be sampled at.", "0 (the likeliest token) or more", str(self.heat))
        if self.samples > 1 and self.heat == 0:
            message = "all samples of a problem are the same at temperature 0."
            raise _bad("--samples", message, "--samples 1, or a temperature above 0", f"--samples {self.samples}")
        if self.heat == 0 and (self.top_k, self.top_p, self.min_p) != (0, 1.0, 0.0):
            message = "at temperature 0 the likeliest token is taken, whatever else there is."
            given = f"--top-k {self.top_k} --top-p {self.top_p} --min-p {self.min_p}, at temperature 0"
            raise _bad("--temperature", message, "above 0 with --top-k, --top-p or --min-p", given)
        if not 0.0 < self.top_p <= 1.0:
            raise _bad("--top-p", "it is no probability to sample within.", "above 0, at most 1", str(self.top_p))
        if not 0 <= self.top_k < 2**31:
            raise _bad("--top-k", "so many tokens cannot be sampled among.", "0 (all) or more", str(self.top_k))
        if not 0.0 <= self.min_p <= 1.0:
            raise _bad("--min-p", "it is no share of the likeliest token's probability.", "0 to 1", str(self.min_p))
        if not 0 <= self.seed <= MOST_SEED:
            raise _bad("--seed", "it is no seed.", f"a whole number from 0 to {MOST_SEED}", str(self.seed))
        if not 0.0 < self.confidence < 1.0:
            raise _bad("--confidence", "it is no probability.", "between 0 and 1, such as 0.95", str(self.confidence))
        if self.system is not None and not self.chat:
            raise _bad("--system", "a system message needs the chat template.", "no --no-chat", "--no-chat")


def _bad(option: str, message: str, expected: str, found: str) -> BatonError:
    return BatonError("BAD_OPTIONS", f"{option}: {message}", expected, found, f"Correct {option}.")
