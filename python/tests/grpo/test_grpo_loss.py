"""What the comparison with the naive reading does not see: figures, edges and errors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from baton.errors import BatonError
from baton.training.grpo.figures import Figures
from baton.training.grpo.loss import LOSSES, LossOptions, Normaliser, policy_loss
from baton.training.grpo.micro_batch import MicroBatch


def make(rows: int = 4, width: int = 5, seed: int = 0, **changes: Any) -> MicroBatch:
    torch.manual_seed(seed)
    mask = torch.arange(width)[None] < torch.randint(1, width + 1, (rows, 1))
    old, engine, reference = (torch.randn(rows, width).where(mask, 0) for _ in range(3))
    values: dict[str, Any] = {
        "samples": tuple(range(rows)),
        "ids": torch.zeros(rows, width + 1, dtype=torch.int64),
        "attention_mask": torch.ones(rows, width + 1, dtype=torch.int64),
        "completion_mask": mask,
        "trained": torch.ones(rows, dtype=torch.bool),
        "advantages": torch.randn(rows),
        "engine_logprobs": engine,
        "old_logprobs": old,
        "reference_logprobs": reference,
    }
    return MicroBatch(**{**values, **changes})


def run(micro: MicroBatch, new: torch.Tensor, **options: Any) -> tuple[torch.Tensor, dict[str, float | None]]:
    loss, figures = policy_loss(new, micro, LossOptions(**options), Normaliser.of([micro]))
    return loss, figures.report()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_and_failed_samples_may_hold_anything(loss: Any, rubbish: float) -> None:
    micro = make(trained=torch.tensor([True, False, True, True]))
    clean = torch.randn(4, 5)
    results = []
    for filler in (0.0, rubbish):
        new = clean.where(micro.loss_mask, filler).requires_grad_()
        fields = {name: getattr(micro, name) for name in ("old_logprobs", "engine_logprobs", "reference_logprobs")}
        dirty = dataclasses.replace(micro, **{k: v.where(micro.loss_mask, filler) for k, v in fields.items()})
        total, report = run(dirty, new, loss=loss, beta=0.1, importance_cap=2.0)
        total.backward()
        results.append((total.item(), new.grad, report))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("failed", [True, False], ids=["all failed", "no tokens"])
def test_nothing_to_train_on_is_a_loss_of_zero_with_a_gradient(loss: Any, failed: bool) -> None:
    micro = make(trained=torch.zeros(4, dtype=torch.bool)) if failed else make(completion_mask=torch.zeros(4, 5) > 1)
    new = torch.randn(4, 5, requires_grad=True)
    total, report = run(micro, new, loss=loss, beta=0.1)
    total.backward()
    assert total.item() == 0
    assert new.grad is not None
    assert not new.grad.any()
    assert report.pop("tokens") == 0
    assert set(report.values()) == {None}


def test_clipping_counts_only_where_it_takes_effect() -> None:
    # One token a row: ratio 2 or 1/2, advantage above, below or at 0.
    ratios, gains = torch.tensor([2.0, 2.0, 0.5, 0.5, 2.0, 0.5]), torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0, 0.0])
    micro = make(6, 1, advantages=gains, old_logprobs=torch.zeros(6, 1))
    new = ratios.log()[:, None].requires_grad_()
    loss, report = run(micro, new)
    loss.backward()
    assert report["clipFractionHigh"] == pytest.approx(1 / 6)
    assert report["clipFractionLow"] == pytest.approx(1 / 6)
    assert report["clipFraction"] == pytest.approx(2 / 6)
    assert new.grad is not None
    assert [bool(each) for each in new.grad.flatten()] == [False, True, True, False, False, False]
    assert report["ratioMean"] == pytest.approx(1.25)


def test_trainer_against_engine() -> None:
    off = torch.tensor([[0.5], [-0.25]])
    micro = make(2, 1, old_logprobs=off - 1, engine_logprobs=torch.full((2, 1), -1.0))
    _, report = run(micro, torch.zeros(2, 1))
    exact = [0.5, -0.25]
    assert report["logprobDifferenceMean"] == pytest.approx(0.375)
    assert report["logprobDifferenceMax"] == pytest.approx(0.5)
    assert report["importanceRatioMean"] == pytest.approx(sum(map(math.exp, exact)) / 2)
    assert report["importanceRatioMax"] == pytest.approx(math.exp(0.5))
    assert report["engineKl1"] == pytest.approx(-0.125)
    assert report["engineKl3"] == pytest.approx(sum(math.exp(x) - 1 - x for x in exact) / 2)


def test_a_nan_is_seen() -> None:
    micro = make(2, 1, engine_logprobs=torch.tensor([[0.0], [math.nan]]))
    report = run(micro, torch.zeros(2, 1))[1]
    assert report["logprobDifferenceMean"] == report["logprobDifferenceMax"] == math.inf


def test_figures_of_parts_are_those_of_the_whole() -> None:
    torch.manual_seed(5)
    whole, new, entropy = make(6, 5), torch.randn(6, 5), torch.rand(6, 5)
    options = LossOptions()

    def part(rows: slice) -> Figures:
        values = {field.name: getattr(whole, field.name)[rows] for field in dataclasses.fields(whole)}
        micro = MicroBatch(**values)
        return policy_loss(new[rows], micro, options, Normaliser(1, 1, 1), entropy[rows])[1]

    one, two = part(slice(0, 1)), part(slice(1, 6))
    expected = part(slice(0, 6)).report()
    assert one.add(two).report() == pytest.approx(expected)
    assert Figures.none().add(one).add(two).report() == pytest.approx(expected)
    (sums, maxima), (more, larger) = one.tensor(), two.tensor()
    assert Figures.from_tensor(sums + more, torch.maximum(maxima, larger)).report() == pytest.approx(expected)
    assert expected["entropy"] == pytest.approx(entropy[whole.loss_mask].mean().item())
    assert None not in expected.values()


def test_what_is_not_measured_is_unknown() -> None:
    report = run(make(reference_logprobs=None), torch.zeros(4, 5))[1]
    assert report["kl"] is report["entropy"] is None
    assert report["ratioMean"] is not None


def test_normaliser_of_ranks_adds_up() -> None:
    micros = [make(seed=i, rows=i + 1, trained=torch.arange(i + 1) != 0) for i in range(3)]
    tokens = sum(int(micro.completion_mask[1:].sum()) for micro in micros)
    assert Normaliser.of(micros) == Normaliser(3, 6, tokens)
    both = Normaliser.of(micros[:1]).tensor() + Normaliser.of(micros[1:]).tensor()
    assert Normaliser.from_tensor(both) == Normaliser(3, 6, tokens)
    assert Normaliser.of([]) == Normaliser(0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "options", "shape", "code"),
    [
        ({"old_logprobs": None}, {}, (4, 5), "OLD_LOGPROBS_MISSING"),
        ({"reference_logprobs": None}, {"beta": 0.1}, (4, 5), "REFERENCE_LOGPROBS_MISSING"),
        ({}, {}, (4, 1), "LOGPROBS_SHAPE"),
    ],
)
def test_what_is_missing(changes: Any, options: Any, shape: tuple[int, int], code: str) -> None:
    with pytest.raises(BatonError, match=code):
        run(make(**changes), torch.zeros(shape), **options)


@pytest.mark.parametrize(
    "change",
    [
        {"clip_low": -0.1},
        {"clip_low": 1.5},
        {"clip_high": math.nan},
        {"beta": -1.0},
        {"loss": "ppo"},
        {"importance_cap": 0.0},
        {"max_completion_tokens": 0},
        {"temperature": 0.0},
    ],
    ids=str,
)
def test_options_that_make_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(BatonError, match=f"BAD_LOSS_OPTIONS(.|\n)*{next(iter(change))}"):
        LossOptions(**change)
