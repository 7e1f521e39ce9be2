"""The demo's GRPO: its loss against a slow reading of the formula, its masks, and that it learns."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from baton import Completion, Sampling
from baton.examples import grpo
from baton.examples.arithmetic import training_problems

PROMPTS = [[3, 4], [5, 6, 7, 8], [9]]
REWARDS = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
ANSWERS = [[10, 1], [11, 12, 1], [1], [2, 2, 2, 2, 2, 2], [3, 1], [4, 5, 1]]


@pytest.fixture
def answers() -> grpo.Answers:
    chance = np.random.default_rng(0)
    completions = [
        Completion(
            prompt=i // 2,
            sample=i % 2,
            tokens=np.array(tokens, dtype=np.uint32),
            logprobs=-chance.exponential(1.0, len(tokens)).astype(np.float32),
            finish="stop" if tokens[-1] == 1 else "length",
            weight_epoch=0,
        )
        for i, tokens in enumerate(ANSWERS)
    ]
    return grpo.Answers(PROMPTS, completions, REWARDS)


@pytest.fixture
def batch(answers: grpo.Answers) -> grpo.Batch:
    return grpo.make_batch(answers, torch.device("cpu"))


def test_a_batch_counts_the_sampled_tokens_and_nothing_else(answers: grpo.Answers, batch: grpo.Batch) -> None:
    assert batch.ids.shape == (6, 10)
    for row, sample in enumerate(answers.completions):
        prompt = PROMPTS[sample.prompt]
        sequence = [*prompt, *ANSWERS[row]]
        assert batch.ids[row].tolist() == sequence + [0] * (10 - len(sequence))
        counted = [position + 1 for position in range(9) if batch.mask[row, position]]
        assert counted == list(range(len(prompt), len(sequence)))
        assert batch.old[row, batch.mask[row]].tolist() == sample.logprobs.tolist()


def test_advantages_compare_the_samples_of_one_problem(batch: grpo.Batch) -> None:
    assert batch.advantages.tolist() == pytest.approx([1.0, -1.0, 0.0, 0.0, -1.0, 1.0], abs=1e-3)


def slow_loss(
    logprobs: list[list[float]], reference: list[list[float]], answers: grpo.Answers, clip: float, kl_weight: float
) -> tuple[float, float, float]:
    """GRPO's formula, one token after another, over the sampled tokens only."""
    losses, kls, clipped = [], [], []
    for row, sample in enumerate(answers.completions):
        group = answers.rewards[sample.prompt].tolist()
        middle = sum(group) / len(group)
        spread = math.sqrt(sum((value - middle) ** 2 for value in group) / len(group))
        advantage = (group[sample.sample] - middle) / (spread + 1e-4)
        terms, kl_terms, clip_terms = [], [], []
        for new, ref, old in zip(logprobs[row], reference[row], sample.logprobs.tolist(), strict=True):
            ratio = math.exp(new - old)
            kept = min(max(ratio, 1 - clip), 1 + clip)
            kl = math.exp(ref - new) - (ref - new) - 1
            terms.append(-min(ratio * advantage, kept * advantage) + kl_weight * kl)
            kl_terms.append(kl)
            clip_terms.append(float(abs(ratio - 1) > clip))
        losses.append(sum(terms) / len(terms))
        kls.append(sum(kl_terms) / len(kl_terms))
        clipped.append(sum(clip_terms) / len(clip_terms))
    return tuple(sum(values) / len(values) for values in (losses, kls, clipped))  # type: ignore[return-value]


@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
def test_the_loss_is_the_formula(answers: grpo.Answers, batch: grpo.Batch, kl_weight: float) -> None:
    torch.manual_seed(1)
    logprobs = (batch.old + 0.3 * torch.randn_like(batch.old)).where(batch.mask, -3.0)
    reference = (batch.old + 0.3 * torch.randn_like(batch.old)).where(batch.mask, -5.0)

    def sampled(values: torch.Tensor) -> list[list[float]]:
        return [row[mask].tolist() for row, mask in zip(values, batch.mask, strict=True)]

    loss, figures = grpo.grpo_loss(logprobs, reference, batch, 0.2, kl_weight)
    expected, kl, clipped = slow_loss(sampled(logprobs), sampled(reference), answers, 0.2, kl_weight)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert figures == pytest.approx({"loss": expected, "kl": kl, "clipFraction": clipped}, abs=1e-6)
    assert 0.1 < clipped < 0.9  # else this says little


def test_prompt_and_padding_change_neither_loss_nor_gradient(batch: grpo.Batch) -> None:
    def run(elsewhere: float) -> tuple[float, torch.Tensor]:
        logprobs = (batch.old - 0.1).where(batch.mask, elsewhere).requires_grad_(True)
        loss, _ = grpo.grpo_loss(logprobs, batch.old.where(batch.mask, 0.0), batch, 0.2, 0.1)
        loss.backward()
        assert logprobs.grad is not None
        return loss.item(), logprobs.grad

    (loss, gradient), (other_loss, other_gradient) = run(-1.0), run(-500.0)
    assert loss == other_loss
    assert torch.equal(gradient, other_gradient)
    assert torch.all(gradient[~batch.mask] == 0)
    assert torch.all(gradient[batch.mask & (batch.advantages != 0)[:, None]] != 0)


def test_clipping_ends_the_pull_of_tokens_that_moved_far_enough(batch: grpo.Batch) -> None:
    far = batch.advantages.sign()[:, None] * 0.5
    logprobs = (batch.old + far).requires_grad_(True)
    loss, figures = grpo.grpo_loss(logprobs, logprobs.detach(), batch, 0.2, 0.0)
    loss.backward()
    assert logprobs.grad is not None
    assert torch.all(logprobs.grad == 0)
    assert figures["clipFraction"] == pytest.approx(4 / 6)


class LocalRollout:
    """Samples with the policy itself, in this process: what Baton's engines do, small enough for a unit test."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        chance = torch.Generator().manual_seed(sampling.seed or 0)
        rows = [list(prompt) for prompt in prompts for _ in range(sampling.n)]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.zeros(len(rows), int(lengths.max()) + sampling.max_tokens, dtype=torch.long)
        for row, prompt in enumerate(rows):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        tokens: list[list[int]] = [[] for _ in rows]
        logprobs: list[list[float]] = [[] for _ in rows]
        going = torch.arange(len(rows))
        for _ in range(sampling.max_tokens):
            if going.numel() == 0:
                break
            logits = self.model(input_ids=ids[going], use_cache=False).logits.float().log_softmax(dim=-1)
            last = logits[torch.arange(len(going)), lengths[going] - 1]
            chosen = torch.multinomial(last.exp(), 1, generator=chance).flatten()
            for place, row in enumerate(going.tolist()):
                tokens[row].append(int(chosen[place]))
                logprobs[row].append(float(last[place, chosen[place]]))
            ids[going, lengths[going]] = chosen
            lengths[going] += 1
            going = going[~torch.isin(chosen, torch.tensor(sampling.stop_token_ids))]
        return [
            Completion(
                prompt=row // sampling.n,
                sample=row % sampling.n,
                tokens=np.array(tokens[row], dtype=np.uint32),
                logprobs=np.array(logprobs[row], dtype=np.float32),
                finish="stop" if tokens[row][-1] in sampling.stop_token_ids else "length",
                weight_epoch=0,
            )
            for row in range(len(rows))
        ]


@pytest.fixture
def alone(tmp_path: Path) -> Generator[None]:
    """A process group of one."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def training(learning_rate: float, steps: int, problems: int) -> Iterator[dict[str, float]]:
    """The script's loop in one process, with a plain optimizer in place of DeepSpeed. Yields after each iteration,
    and the held-out reward before and after."""
    options = grpo.parse_options(["--steps", str(steps), "--problems", str(problems), "--held-out", "256"])
    script = grpo.Script(options)
    policy: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.0)
    rollout: Any = LocalRollout(policy)
    yield {"heldOut": script.held_out_reward(rollout, torch.device("cpu"))}
    for step in range(1, steps + 1):
        answers = script.ask(rollout, script.problems_of(step), options.samples, seed=step)
        batch = grpo.make_batch(answers, torch.device("cpu"))
        kept = batch.old.clone()
        with torch.no_grad():
            from_reference = grpo.token_logprobs(reference, batch.ids)
        for iteration in range(options.iterations):
            logprobs = grpo.token_logprobs(policy, batch.ids)
            loss, figures = grpo.grpo_loss(logprobs, from_reference, batch, options.clip, options.kl)
            moved = (logprobs - batch.old)[batch.mask].abs().max().item()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            assert torch.equal(batch.old, kept)
            yield {"step": step, "iteration": iteration, "moved": moved, **figures}
    yield {"heldOut": script.held_out_reward(rollout, torch.device("cpu"))}


@pytest.mark.usefixtures("alone")
def test_old_logprobs_are_those_of_generation_in_every_iteration() -> None:
    reports = [report for report in training(grpo.parse_options([]).learning_rate, 2, problems=16) if "step" in report]
    first = [report for report in reports if report["iteration"] == 0]
    second = [report for report in reports if report["iteration"] == 1]
    assert len(first) == len(second) == 2
    # Freshly sampled tokens have the probability that they were sampled with; one optimizer step changes it.
    assert all(report["clipFraction"] == 0 and report["moved"] < 1e-4 for report in first)
    assert all(report["moved"] > 1e-2 for report in second)
    assert reports[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert reports[-1]["kl"] > 1e-3


@pytest.mark.usefixtures("alone")
def test_a_few_steps_raise_the_held_out_reward() -> None:
    before, *_, after = training(grpo.parse_options([]).learning_rate, 4, problems=32)
    assert after["heldOut"] > before["heldOut"] + 0.1


@pytest.mark.usefixtures("alone")
def test_with_learning_rate_0_the_held_out_reward_stays_exactly_the_same() -> None:
    before, *_, after = training(0.0, 1, problems=16)
    assert after == before


@pytest.mark.usefixtures("alone")
def test_ranks_and_steps_share_no_problem() -> None:
    options = grpo.parse_options(["--problems", "64"])
    seen: list[Any] = []
    for ranks in (1, 3, 8):
        seen.clear()
        for rank in range(ranks):
            script = grpo.Script(options)
            script.rank, script.ranks, script.problems_per_rank = rank, ranks, 64 // ranks
            for step in range(1, 17):
                seen.extend(script.problems_of(step))
        assert len(seen) == len(set(seen)) == 16 * ranks * (64 // ranks)
        assert set(seen) <= set(training_problems())
    other = grpo.Script(grpo.parse_options(["--seed", "1"]))
    assert other.problems_of(1) != grpo.Script(options).problems_of(1)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_deepspeed_config_fits_the_model(stage: int) -> None:
    config = grpo.deepspeed_config(grpo.parse_options(["--zero", str(stage)]), rows=64)
    zero = config["zero_optimization"]
    assert zero["stage"] == stage
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == 2**18
    assert zero.get("stage3_param_persistence_threshold") == (0 if stage == 3 else None)
    assert config["bf16"]["enabled"]


def test_the_script_is_short_enough_to_be_read() -> None:
    assert len(Path(grpo.__file__).read_text().splitlines()) <= 200
