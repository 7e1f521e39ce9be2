"""What the engines are asked during a rollout, and what their answers are worth."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baton.completion import Completion, Sampling
from baton.evaluation.estimates import estimate
from baton.rollout import Rollout
from baton.training.grpo.advantages import advantages, reward_sums, std_of
from baton.training.grpo.batch import GeneratedBatch
from baton.training.grpo.data import TokenizedProblem, columns_of
from baton.training.grpo.logs import EVALUATION
from baton.training.grpo.plan import Plan
from baton.training.grpo.ranks import Ranks
from baton.training.grpo.rewards import Judged, check_some_judged

Metrics = dict[str, float | None]


@dataclass(frozen=True)
class Answers:
    """Completions of this rank's problems, by problem, then by sample; equally many of each."""

    problems: list[TokenizedProblem]
    completions: list[Completion]


class Sampler:
    """One rank's part of generating and judging. All methods are collective."""

    def __init__(self, plan: Plan, ranks: Ranks) -> None:
        self._plan, self._options, self._ranks = plan, plan.options, ranks

    # ---- in the rollout ---------------------------------------------------------------------------------

    def ask(self, rollout: Rollout, number: int) -> Answers:
        """Completions for this rank's share of generated batch `number`, from 0."""
        options, ranks = self._options, self._ranks
        problems = [self._plan.problems[i] for i in self._plan.order.share(number, ranks.rank, ranks.count)]
        # A seed of its own for each batch, the same again in a run that is resumed.
        seed = (options.seed * 1_000_003 + number + 1) % 2**52
        cuts = {"top_k": options.top_k, "top_p": options.top_p, "min_p": options.min_p}
        n, temperature = options.num_generations, options.temperature
        return self._ask(rollout, problems, n=n, temperature=temperature, seed=seed, **cuts)

    def ask_held_out(self, rollout: Rollout) -> Answers:
        """Answers to this rank's held-out problems, sampled in the same way each time; it may have none of them."""
        options = self._options
        mine = self._plan.held_out[self._ranks.rank :: self._ranks.count]
        # No batch has this seed, so nothing about training depends on an evaluation.
        n, temperature = options.held_out_samples, options.held_out_temperature
        return self._ask(rollout, mine, n=n, temperature=temperature, seed=options.seed)

    def _ask(self, rollout: Rollout, problems: list[TokenizedProblem], **how: Any) -> Answers:
        """`how`: of Sampling, what training and evaluation differ in."""
        most, stop = self._options.max_completion_tokens, self._plan.stop_token_ids
        sampling = Sampling(max_tokens=most, stop_token_ids=stop, **how)
        return Answers(problems, rollout.generate([each.prompt_token_ids for each in problems], sampling))

    # ---- after it ---------------------------------------------------------------------------------------

    def judge(self, answers: Answers) -> tuple[GeneratedBatch, Metrics]:
        """A batch to train on, and what there is to say about it. Raises BatonError REWARD_LENGTH, REWARDS_FAILED."""
        judged = self._rewards(answers)
        groups = torch.from_numpy(judged.total).view(len(answers.problems), -1)
        sums = self._ranks.sum(reward_sums(groups.flatten()))
        by_reward = advantages(groups, self._options.scale_rewards, std_of(sums))
        trained = groups.flatten().isfinite()
        if self._options.mask_truncated:
            trained &= torch.tensor([each.finish == "stop" for each in answers.completions])
        batch = GeneratedBatch(
            prompts=[each.prompt_token_ids for each in answers.problems],
            completions=answers.completions,
            advantages=by_reward.flatten(),
            trained=trained,
            weight_epoch=answers.completions[0].weight_epoch,
        )
        alike = (by_reward == 0).all(dim=1).sum()
        metrics = self._reward_metrics(judged, "reward")
        metrics |= self._length_metrics(answers.completions, "completion")
        metrics["reward/equal_groups"] = float(self._ranks.sum(alike.double())) / self._options.prompts
        return batch, metrics

    def judge_held_out(self, answers: Answers) -> Metrics:
        """Means over all held-out problems; a failed sample counts in none, and is counted."""
        judged = self._rewards(answers)
        metrics = self._reward_metrics(judged, EVALUATION)
        metrics |= self._pass_metrics(judged)
        return metrics | self._length_metrics(answers.completions, f"{EVALUATION}/completion")

    def _rewards(self, answers: Answers) -> Judged:
        samples = len(answers.completions) // max(1, len(answers.problems))
        problems = [each.problem for each in answers.problems for _ in range(samples)]
        texts = [self._text(each) for each in answers.completions]
        judged = self._plan.rewards.judge([each.prompt for each in problems], texts, columns_of(problems))
        counts = torch.tensor([len(texts) - len({each.sample for each in judged.failures}), len(texts)])
        some, of = (int(each) for each in self._ranks.sum(counts))
        check_some_judged(some, of, judged.failures)
        said: set[str] = set()
        for failure in judged.failures:
            if failure.function not in said:
                said.add(failure.function)
                print(f"baton: reward {failure.function} failed: {failure.error}", file=sys.stderr, flush=True)
        return judged

    def _text(self, completion: Completion) -> str:
        """Without the token that ended it, which is no part of the answer."""
        tokens = completion.tokens[:-1] if completion.finish == "stop" else completion.tokens
        return self._plan.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)

    # ---- figures ----------------------------------------------------------------------------------------

    def _reward_metrics(self, judged: Judged, under: str) -> Metrics:
        rows = [torch.from_numpy(judged.total), *(torch.from_numpy(row) for row in judged.values)]
        failed = len({failure.sample for failure in judged.failures})
        local = torch.cat([*(reward_sums(row) for row in rows), torch.tensor([float(failed)])])
        summed = self._ranks.sum(local)
        metrics: Metrics = {f"{under}/failed": float(summed[-1])}
        # The sum of all functions has no name of its own; a function's may be anything.
        names = [under, *(f"{under}/{name}" for name in self._plan.rewards.names)]
        for name, sums in zip(names, summed[:-1].view(-1, 3), strict=True):
            metrics |= {f"{name}/mean": _mean(sums), f"{name}/std": std_of(sums) if sums[0] else None}
        return metrics

    def _pass_metrics(self, judged: Judged) -> Metrics:
        """pass@1, and pass@k of all samples, with their intervals. Samples that could not be judged are left out."""
        options, ranks, solving = self._options, self._ranks, self._options.solving
        if solving is None:
            return {}
        values = torch.from_numpy(judged.values[self._plan.rewards.names.index(solving)])
        here = torch.zeros(len(self._plan.held_out), 2, dtype=torch.float64)
        here[ranks.rank :: ranks.count, 0] = values.view(-1, options.held_out_samples).isfinite().sum(dim=1).double()
        here[ranks.rank :: ranks.count, 1] = (values.view(-1, options.held_out_samples) >= 1).sum(dim=1).double()
        counts = [(int(samples), int(right)) for samples, right in ranks.sum(here).tolist()]
        metrics: Metrics = {}
        for k in sorted({1, options.held_out_samples}):
            found = estimate(counts, k)
            name = f"{EVALUATION}/pass@{k}"
            metrics |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        return metrics

    def _length_metrics(self, completions: Sequence[Completion], under: str) -> Metrics:
        lengths = torch.tensor([each.tokens.size for each in completions], dtype=torch.float64)
        cut = sum(each.finish == "length" for each in completions)
        summed = self._ranks.sum(torch.tensor([len(completions), float(lengths.sum()), cut], dtype=torch.float64))
        none = lengths.numel() == 0
        extremes = torch.tensor([-math.inf, -math.inf] if none else [float(lengths.max()), -float(lengths.min())])
        longest, shortest = (float(each) for each in self._ranks.max(extremes.double()))
        count, tokens, truncated = (float(each) for each in summed)
        return {
            f"{under}/tokens": tokens,
            f"{under}/length_mean": tokens / count if count else None,
            f"{under}/length_max": longest if count else None,
            f"{under}/length_min": -shortest if count else None,
            f"{under}/truncated": truncated / count if count else None,
        }


def _mean(sums: Tensor) -> float | None:
    return float(sums[1] / sums[0]) if sums[0] else None
