"""pass@k over the held-out problems is the same however many ranks share them, and however few problems there are."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recipes import options

from baton.completion import Completion
from baton.evaluation.estimates import estimate
from baton.training.grpo.problems import Problem
from baton.training.grpo.ranks import Ranks
from baton.training.grpo.rewards import Rewards
from baton.training.grpo.sampler import Answers, Metrics, Sampler


class Meeting:
    """Sums over threads, each a rank."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count, timeout=20)
        self.values: dict[int, torch.Tensor] = {}

    def reduced(self, rank: int, values: torch.Tensor, how: Any) -> torch.Tensor:
        self.values[rank] = values.double()
        self.barrier.wait()
        stacked = torch.stack([self.values[each] for each in sorted(self.values)])
        self.barrier.wait()
        return stacked.amax(0) if how == torch.distributed.ReduceOp.MAX else stacked.sum(0)


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    meeting: Meeting

    def _reduced(self, values: torch.Tensor, how: Any) -> torch.Tensor:
        return self.meeting.reduced(self.rank, values, how)


def value_of(completions: list[str], values: list[list[float | None]]) -> list[float | None]:
    """The value that a problem's column has for each sample; the text is the sample's number."""
    return [each[int(text)] for text, each in zip(completions, values, strict=True)]


def judged(values: list[list[float | None]], ranks: int, samples: int, **changes: Any) -> list[Metrics]:
    made = options(
        held_out="h.jsonl",
        held_out_samples=samples,
        held_out_temperature=1.0,
        rewards=[{"function": "m:value_of"}],
        **changes,
    )
    held_out: Any = [SimpleNamespace(problem=Problem("p", {"values": each}, "here")) for each in values]
    tokenizer = SimpleNamespace(decode=lambda tokens, **_: "".join(map(str, tokens)))
    plan: Any = SimpleNamespace(
        options=made, held_out=held_out, tokenizer=tokenizer, rewards=Rewards([value_of], [1.0])
    )
    meeting, found = Meeting(ranks), [{}] * ranks

    def work(rank: int) -> None:
        mine = held_out[rank::ranks]
        completions = [
            Completion(i, sample, np.array([sample], dtype=np.uint32), np.zeros(1, dtype=np.float32), "length", 0)
            for i in range(len(mine))
            for sample in range(samples)
        ]
        sampler = Sampler(plan, ThreadRanks(rank, ranks, torch.device("cpu"), meeting))
        found[rank] = sampler.judge_held_out(Answers(mine, completions))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


VALUES: list[list[float | None]] = [
    [1, 0, 0],
    [1, 1, 1],
    [0, 0, 0],
    [0.9, 1, 2],  # 0.9 is not right, 2 is
    [None, 1, 0],  # a sample that nothing judges
]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_however_many_ranks(ranks: int) -> None:
    for metrics in judged(VALUES, ranks, 3):
        counts = [(3, 1), (3, 3), (3, 0), (3, 2), (2, 1)]
        for k in (1, 3):
            expected = estimate(counts, k)
            name = f"held_out/pass@{k}"
            assert metrics[name] == expected.value
            assert (metrics[f"{name}_low"], metrics[f"{name}_high"]) == (expected.low, expected.high)
        assert estimate(counts, 3).problems == 4
        assert metrics["held_out/failed"] == 1
        assert "held_out/pass@2" not in metrics


def test_one_problem_and_one_sample() -> None:
    for metrics in judged([[1.0]], 2, 1):
        assert metrics["held_out/pass@1"] == 1
        assert (metrics["held_out/pass@1_low"] or 1) < 0.5


def test_without_a_function_that_says_what_is_right_there_is_no_pass_at_k() -> None:
    rewards = [{"function": "m:value_of"}, {"function": "m:other"}]
    assert options(rewards=rewards).solving is None
    assert options(rewards=rewards, solved_by="other").solving == "other"
    assert options(rewards=rewards[:1]).solving == "value_of"
    builtin = {"function": "math_verify", "name": "right"}
    assert options(rewards=[*rewards, builtin]).solving == "right"
