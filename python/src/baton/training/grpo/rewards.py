"""Judges completions by several reward functions; what goes wrong with one sample stays with that sample.

A reward function is `f(completions, prompts=..., **columns) -> list`: for each completion a number, None where it has
nothing to say, or an exception, which is that sample's failure. It gets those keyword arguments only that it names, or
all if it has `**kwargs`.
"""

from __future__ import annotations

import math
import numbers
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from baton.errors import BatonError
from baton.training.grpo.reward_functions import Reward, load_reward

__all__ = ["Judged", "Reward", "RewardFailure", "Rewards", "check_some_judged", "judge_by", "load_reward"]

F64s = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RewardFailure:
    """Why a function gave no reward to a sample (a position in the batch). A function's first has its traceback."""

    function: str
    sample: int
    error: str


@dataclass(frozen=True)
class Judged:
    values: F64s  # [functions, samples]; NaN: the function failed, or does not apply
    total: F64s  # [samples], weighted sums; NaN: the sample failed
    failures: list[RewardFailure]


def check_some_judged(judged: int, of: int, failures: Sequence[RewardFailure]) -> None:
    """Whether any sample of a batch, over all ranks, has a reward. Raises BatonError REWARDS_FAILED.

    `failures` are those of this rank: there may be none, when it had no samples.
    """
    if judged or not of:
        return
    first = f"{failures[0].function}: {failures[0].error}" if failures else "failures on the other ranks"
    raise BatonError(
        "REWARDS_FAILED",
        f"Not one of {of} completions could be judged.",
        expected="a reward for at least one completion of a batch",
        found=first,
        action="Correct the reward function, or the data that it is given.",
    )


class Rewards:
    """`functions` by their weights. Plain functions are named as they are."""

    def __init__(self, functions: Sequence[Reward | Callable[..., Any]], weights: Sequence[float]) -> None:
        if len(functions) != len(weights):
            raise ValueError(f"{len(functions)} reward functions, {len(weights)} weights")
        self.functions = [each if isinstance(each, Reward) else Reward.of(each) for each in functions]
        self.weights = np.array(weights, dtype=np.float64)

    @property
    def names(self) -> list[str]:
        return [function.name for function in self.functions]

    def check(self, columns: Sequence[str], place: str = "the data") -> None:
        """Whether a problem has the columns that the functions need. Raises BatonError REWARD_COLUMN_MISSING."""
        for function in self.functions:
            function.check(columns, place)

    def judge(self, prompts: Sequence[Any], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Judged:
        """Judges samples: a prompt (as in the data), a completion and a value of every column for each.

        A sample fails where a function raises, gives something other than a finite number or None, or where none of
        the functions applies. Raises BatonError REWARD_LENGTH.
        """
        samples = {**columns, "prompts": prompts, "completions": completions}
        count = len(completions)
        for name, values in samples.items():
            if len(values) != count:
                raise ValueError(f"{count} completions, {len(values)} values of {name}")
        judged = np.full((len(self.functions), count), np.nan)
        failures: list[RewardFailure] = []
        for row, function in zip(judged, self.functions, strict=True):
            failures += judge_by(function, samples, row)
        applies = ~np.isnan(judged)
        failed = {failure.sample for failure in failures}
        for sample in np.flatnonzero(~applies.any(axis=0)).tolist():
            if sample not in failed:
                failures.append(RewardFailure(", ".join(self.names), sample, "no reward function applies"))
                failed.add(sample)
        total = (self.weights[:, None] * np.where(applies, judged, 0.0)).sum(axis=0)
        total[list(failed)] = np.nan
        return Judged(judged, total, failures)


def judge_by(function: Reward, samples: Mapping[str, Sequence[Any]], row: F64s) -> list[RewardFailure]:
    """Fills `row` [samples] with one function's rewards. Raises BatonError REWARD_LENGTH."""
    count = row.size
    if not count:
        return []
    try:
        results = _call(function, samples, 0, count)
    except BatonError:
        raise
    except (Exception, SystemExit):
        # Some sample of the batch: which one shows when each is judged alone.
        results = [_alone(function, samples, sample) for sample in range(count)]
    failures: list[RewardFailure] = []
    for sample, result in enumerate(results):
        try:
            row[sample] = np.nan if result is None else _number(result)
        except (Exception, SystemExit) as error:
            text = f"{type(error).__name__}: {error}"
            if not failures:
                text = "".join(traceback.format_exception(error)).rstrip()
            failures.append(RewardFailure(function.name, sample, text))
    return failures


def _alone(function: Reward, samples: Mapping[str, Sequence[Any]], sample: int) -> Any:
    """The reward of one sample, or the exception instead of it."""
    try:
        return _call(function, samples, sample, sample + 1)[0]
    except BatonError:
        raise
    except (Exception, SystemExit) as error:
        return error  # sys.exit() too is a failure of this sample: it must not end the training


def _call(function: Reward, samples: Mapping[str, Sequence[Any]], begin: int, end: int) -> list[Any]:
    # Lists of its own: a function that changes one must not change what the next one reads.
    results: Any = function({name: list(values[begin:end]) for name, values in samples.items()})
    if not isinstance(results, list | tuple) and hasattr(results, "tolist"):
        results = results.tolist()  # an array or a tensor
    length = len(cast("list[Any]", results)) if isinstance(results, list | tuple) else None
    if length != end - begin:
        raise BatonError(
            "REWARD_LENGTH",
            f"The reward function {function.name} did not give one reward for each completion.",
            expected=f"a list of {end - begin}",
            found=f"a list of {length}" if length is not None else f"{type(results).__name__}: {results!r}"[:120],
            action="Return a list with a number, or None, for each completion, in their order.",
        )
    return list(results)


def _number(result: Any) -> float:
    if isinstance(result, BaseException):
        raise result
    if hasattr(result, "item"):
        result = result.item()  # a tensor, or a number of numpy's
    if not isinstance(result, numbers.Real):
        raise TypeError(f"the reward is no number but {type(result).__name__}: {result!r}"[:200])
    value = float(result)
    if not math.isfinite(value):
        raise ValueError(f"the reward is {value}")
    return value
