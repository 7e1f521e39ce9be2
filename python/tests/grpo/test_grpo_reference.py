"""Losses, gradients, figures and weights against GRPO read slowly from the papers; mistakes that this must catch."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from grpo_cases import LONGEST, TEMPERATURE, Case, compare

from baton.training.grpo import policy
from baton.training.grpo.batch import GeneratedBatch
from baton.training.grpo.loss import LOSSES, LossOptions
from baton.training.grpo.micro_batch import MicroBatch


def options(loss: Any, **changes: Any) -> LossOptions:
    usual = LossOptions(beta=0.1, loss=loss, max_completion_tokens=LONGEST, temperature=TEMPERATURE)
    return dataclasses.replace(usual, **changes)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("iterations", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [8, 3, 1], ids=lambda rows: f"rows{rows}")
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
def test_equals_the_naive_reading(loss: str, iterations: int, micro_batch: int, adam: bool) -> None:
    steps = compare(Case(options(loss), iterations, micro_batch, adam))
    fractions = [step.figures.report()["clipFraction"] for step in steps]
    assert fractions[0] == 0
    assert all(fraction is not None and fraction > 0 for fraction in fractions[1:])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "changes",
    [
        {"beta": 0.0},
        {"importance_cap": 1.1},
        {"importance_cap": 0.9, "beta": 0.0},
        {"clip_low": 0.1, "clip_high": 0.4},
        {"temperature": 1.3},
    ],
    ids=str,
)
def test_options_of_the_loss(loss: str, changes: dict[str, Any]) -> None:
    compare(Case(options(loss, **changes), sort=True))


def test_llama() -> None:
    compare(Case(options("grpo")), kind="llama")


@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_of_any_size_make_the_same_loss(loss: str) -> None:
    losses = [compare(Case(options(loss), micro_batch=rows, sort=rows % 2 == 0))[-1].loss for rows in (1, 4, 5, 7)]
    assert max(losses) - min(losses) < 1e-5 * max(1.0, abs(losses[0]))


class TestPlantedMistakes:
    """The comparison above must not survive any of these; that it holds without them is tested above."""

    @staticmethod
    def caught(loss: str = "grpo", **changes: Any) -> None:
        with pytest.raises(AssertionError):
            compare(Case(options(loss)), **changes)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_old_logprobs_overwritten_in_each_iteration(self, loss: str) -> None:
        def forget(batches: list[GeneratedBatch]) -> None:
            for batch in batches:
                batch._old = None

        self.caught(loss, before=forget)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_padding_counted(self, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def everything(micro: MicroBatch) -> torch.Tensor:
            return torch.ones_like(micro.completion_mask) & micro.trained[:, None]

        monkeypatch.setattr(MicroBatch, "loss_mask", property(everything))
        self.caught(loss)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_prompt_counted(self, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def tokens(micro: MicroBatch) -> torch.Tensor:
            return micro.attention_mask[:, 1:].bool() & micro.trained[:, None]

        monkeypatch.setattr(MicroBatch, "loss_mask", property(tokens))
        self.caught(loss)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_failed_samples_trained_on(self, loss: str) -> None:
        def forgive(batches: list[GeneratedBatch]) -> None:
            for batch in batches:
                batch.trained[:] = True

        self.caught(loss, spoil=forgive)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_remainder_dropped(self, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = GeneratedBatch.micro_batches

        def dropping(batch: GeneratedBatch, rows: int, *, sort: bool = False) -> list[MicroBatch]:
            micros = whole(batch, rows, sort=sort)
            # The logprobs are set from all of them, which is checked; the mistake is made afterwards.
            return micros if batch.old_logprobs is None else [each for each in micros if len(each.samples) == rows]

        monkeypatch.setattr(GeneratedBatch, "micro_batches", dropping)
        self.caught(loss)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_temperature_forgotten(self, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
        right = policy.token_logprobs

        def forgetting(model: Any, ids: Any, attention_mask: Any, _: float, **rest: Any) -> Any:
            return right(model, ids, attention_mask, 1.0, **rest)

        monkeypatch.setattr(policy, "token_logprobs", forgetting)
        self.caught(loss)

    def test_mean_of_means_over_uneven_micro_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from baton.training.grpo import loss as module

        def of_this_one(per_token: Any, counted: Any, *_: Any) -> Any:
            return (per_token.sum(dim=1) / counted.sum(dim=1).clamp(min=1)).mean()

        monkeypatch.setattr(module, "_reduced", of_this_one)
        self.caught("grpo")

    def test_advantages_of_another_rank(self) -> None:
        def swap(batches: list[GeneratedBatch]) -> None:
            first, second = batches
            first.advantages, second.advantages = second.advantages, first.advantages

        self.caught(spoil=swap)
