"""A tiny policy, samples of it, and two ways to train on them: the code under test and the naive reading."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from naive_grpo import Outcome, Sample, group_advantages, logprobs_of, naive_loss
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from baton import Completion
from baton.training.grpo import policy
from baton.training.grpo.advantages import advantages
from baton.training.grpo.batch import GeneratedBatch
from baton.training.grpo.figures import Figures
from baton.training.grpo.loss import LossOptions, Normaliser, policy_loss

VOCABULARY = 23
GENERATIONS = 4
TEMPERATURE = 0.7
LONGEST = 7
RANKS = 2


def make_model(kind: str = "qwen2", seed: int = 0) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "attn_implementation": "eager",
    }
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**sizes)) if kind == "qwen2" else LlamaForCausalLM(LlamaConfig(**sizes))
    return model.float().eval()


def make_samples(model: Any, seed: int = 0) -> list[Sample]:
    """4 groups of 4, of many lengths: a failed sample, one without tokens, a group of equal rewards, one almost all
    failed. The engine's logprobs are a little off the policy's.
    """
    chance = np.random.default_rng(seed)
    nan = math.nan
    rewards = [[1.0, 0.0, nan, 0.3], [0.0, 0.5, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [nan, nan, 1.0, nan]]
    samples = []
    for group, row in enumerate(rewards):
        prompt = chance.integers(0, VOCABULARY, [1, 5, 3, 2][group]).tolist()
        found = [
            Sample(prompt, chance.integers(0, VOCABULARY, chance.integers(1, LONGEST + 1)).tolist(), [], reward)
            for reward in row
        ]
        if group == 1:
            found[1].tokens = []
        for sample, advantage in zip(found, group_advantages(row), strict=True):
            sample.advantage = advantage
            with torch.no_grad():
                exact = [each.item() for each in logprobs_of(model, sample, TEMPERATURE)]
            sample.engine = [each + chance.normal(0, 0.3) for each in exact]
        samples += found
    return samples


def as_batches(samples: list[Sample], ranks: int = RANKS) -> list[GeneratedBatch]:
    """Whole groups for each rank, as a trainer would have them."""
    batches = []
    share = len(samples) // ranks
    for rank in range(ranks):
        mine = samples[rank * share : (rank + 1) * share]
        completions = [
            Completion(
                prompt=i // GENERATIONS,
                sample=i % GENERATIONS,
                tokens=np.array(sample.tokens, dtype=np.uint32),
                logprobs=np.array(sample.engine, dtype=np.float32),
                finish="stop",
                weight_epoch=3,
            )
            for i, sample in enumerate(mine)
        ]
        rewards = torch.tensor([sample.reward for sample in mine]).view(-1, GENERATIONS)
        prompts = [sample.prompt for sample in mine[::GENERATIONS]]
        batches.append(GeneratedBatch(prompts, completions, advantages(rewards, "group"), rewards.isfinite(), 3))
    return batches


@dataclass
class Step:
    loss: float
    gradients: dict[str, torch.Tensor]
    figures: Figures


@dataclass(frozen=True)
class Case:
    options: LossOptions
    iterations: int = 2
    micro_batch: int = 3  # of 8 rows: the last micro-batch is smaller
    adam: bool = False
    sort: bool = False
    chunk: int = 5

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        if self.adam:
            # With a larger epsilon than usual: a gradient of nothing but rounding must not become a step.
            return torch.optim.Adam(model.parameters(), lr=0.02, eps=1e-3)
        return torch.optim.SGD(model.parameters(), lr=0.1)


def gradients_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def train(
    model: Any, reference: Any, batches: list[GeneratedBatch], case: Case, before: Callable[[], None] = lambda: None
) -> list[Step]:
    """The code under test. `before` is called before each iteration. Ranks take turns on one model."""
    options = case.options

    def logprobs(each: Any, micro: Any, entropy: bool = False) -> Any:
        return policy.token_logprobs(
            each, micro.ids, micro.attention_mask, options.temperature, entropy=entropy, chunk=case.chunk
        )

    def keep(each: Any, batch: GeneratedBatch, setter: Any) -> None:
        micros = batch.micro_batches(case.micro_batch, sort=case.sort)
        with torch.no_grad():
            setter(micros, [logprobs(each, micro)[0] for micro in micros])

    optimizer = case.optimizer(model)
    steps = []
    for batch in batches:
        keep(reference, batch, batch.set_reference_logprobs)
    for _ in range(case.iterations):
        before()
        for batch in batches:
            if batch.old_logprobs is None:
                keep(model, batch, batch.set_old_logprobs)
        micros = [micro for batch in batches for micro in batch.micro_batches(case.micro_batch, sort=case.sort)]
        counts = [Normaliser.of(batch.micro_batches(case.micro_batch)).tensor() for batch in batches]
        normaliser = Normaliser.from_tensor(torch.stack(counts).sum(dim=0))
        optimizer.zero_grad()
        total, figures = 0.0, Figures.none()
        for micro in micros:
            found, entropy = logprobs(model, micro, entropy=True)
            loss, more = policy_loss(found, micro, options, normaliser, entropy)
            # As DeepSpeed: the average over ranks, and over the micro-batches of each.
            (loss / len(micros)).backward()
            total, figures = total + loss.item() / len(micros), figures.add(more)
        steps.append(Step(total, gradients_of(model), figures))
        optimizer.step()
    return steps


def train_naively(model: Any, reference: Any, samples: list[Sample], case: Case) -> list[tuple[Outcome, Any]]:
    options = case.options
    optimizer = case.optimizer(model)
    for sample in samples:
        with torch.no_grad():
            sample.old = [each.item() for each in logprobs_of(model, sample, options.temperature)]
            sample.reference = [each.item() for each in logprobs_of(reference, sample, options.temperature)]
    steps = []
    for _ in range(case.iterations):
        outcome = naive_loss(
            model,
            samples,
            options.loss,
            clip_low=options.clip_low,
            clip_high=options.clip_high,
            beta=options.beta,
            cap=options.importance_cap,
            longest=options.max_completion_tokens,
            temperature=options.temperature,
        )
        optimizer.zero_grad()
        outcome.loss.backward()
        steps.append((outcome, gradients_of(model)))
        optimizer.step()
    return steps


def compare(
    case: Case,
    kind: str = "qwen2",
    spoil: Callable[[list[GeneratedBatch]], None] = lambda _: None,
    before: Callable[[list[GeneratedBatch]], None] = lambda _: None,
) -> list[Step]:
    """Asserts that both ways agree at every iteration: losses, gradients, figures, and weights at the end.

    `spoil` and `before` (before each iteration) plant mistakes into what the code under test is given.
    """
    model, reference = make_model(kind), make_model(kind, seed=1)
    samples = make_samples(model)
    batches = as_batches(samples)
    spoil(batches)
    slow = copy.deepcopy(model)
    steps = train(model, reference, batches, case, before=lambda: before(batches))
    for step, (outcome, gradients) in zip(steps, train_naively(slow, reference, samples, case), strict=True):
        torch.testing.assert_close(step.loss, outcome.loss.item(), rtol=1e-4, atol=1e-6)
        largest = max(gradient.abs().max().item() for gradient in gradients.values())
        for name, gradient in gradients.items():
            torch.testing.assert_close(step.gradients[name], gradient, rtol=1e-3, atol=3e-5 * largest, msg=name)
        report = step.figures.report()
        assert report["tokens"] == outcome.tokens
        assert report["clipFractionLow"] == outcome.clipped_low / outcome.tokens
        assert report["clipFractionHigh"] == outcome.clipped_high / outcome.tokens
        torch.testing.assert_close(report["ratioMean"], outcome.ratio, rtol=1e-4, atol=0.0)
        if case.options.beta:
            torch.testing.assert_close(report["kl"], outcome.kl, rtol=1e-4, atol=1e-6)
    for (name, fast), (_, naive) in zip(model.named_parameters(), slow.named_parameters(), strict=True):
        torch.testing.assert_close(fast, naive, rtol=1e-3, atol=1e-4, msg=name)
    return steps
