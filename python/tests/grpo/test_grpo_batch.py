from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baton import Completion
from baton.errors import BatonError
from baton.training.grpo.batch import GeneratedBatch
from baton.training.grpo.micro_batch import MicroBatch


def completion(prompt: int, tokens: Sequence[int], epoch: int = 3, **changes: Any) -> Completion:
    values = {
        "prompt": prompt,
        "sample": 0,
        "tokens": np.array(tokens, dtype=np.uint32),
        "logprobs": -np.array(tokens, dtype=np.float32) / 8,
        "finish": "length",
        "weight_epoch": epoch,
    }
    return Completion(**{**values, **changes})


PROMPTS = [[5], [6, 7, 8]]
ANSWERS = [(0, [1, 2, 3]), (0, []), (1, [4]), (1, [9, 9]), (0, [2])]


def make(**changes: Any) -> GeneratedBatch:
    values: dict[str, Any] = {
        "prompts": PROMPTS,
        "completions": [completion(*answer) for answer in ANSWERS],
        "advantages": torch.tensor([1.0, -1.0, 0.0, 2.0, 0.5]),
        "trained": torch.tensor([True, True, False, True, True]),
        "weight_epoch": 3,
    }
    return GeneratedBatch(**{**values, **changes})


def fill(batch: GeneratedBatch, rows: int, sort: bool, of: str = "old") -> None:
    """Logprobs that tell where they belong: 100 times the sample, plus the position; and rubbish elsewhere."""
    micros = batch.micro_batches(rows, sort=sort)
    values = []
    for micro in micros:
        value = torch.full(micro.completion_mask.shape, math.nan)
        for row, sample in enumerate(micro.samples):
            count = int(micro.completion_mask[row].sum())
            value[row, micro.completion_mask[row]] = 100.0 * sample + torch.arange(count)
        values.append(value)
    getattr(batch, f"set_{of}_logprobs")(micros, values)


EXPECTED = [100.0 * sample + t for sample, (_, tokens) in enumerate(ANSWERS) for t in range(len(tokens))]


def test_rows_in_order_padded_on_the_right() -> None:
    first, second, third = make().micro_batches(2)
    assert [micro.samples for micro in (first, second, third)] == [(0, 1), (2, 3), (4,)]
    assert first.ids.tolist() == [[5, 1, 2, 3], [5, 0, 0, 0]]
    assert first.attention_mask.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert first.completion_mask.tolist() == [[True, True, True], [False, False, False]]
    assert first.engine_logprobs.tolist() == [[-0.125, -0.25, -0.375], [0, 0, 0]]
    assert second.ids.tolist() == [[6, 7, 8, 4, 0], [6, 7, 8, 9, 9]]
    assert second.completion_mask.tolist() == [[False, False, True, False], [False, False, True, True]]
    assert second.loss_mask.tolist() == [[False] * 4, [False, False, True, True]]
    assert second.engine_logprobs.tolist() == [[0, 0, -0.5, 0], [0, 0, -1.125, -1.125]]
    assert second.advantages.tolist() == [0.0, 2.0]
    assert third.ids.tolist() == [[5, 2]]
    assert first.old_logprobs is None
    assert first.reference_logprobs is None


def test_no_tokens_at_all_is_still_two_wide() -> None:
    (micro,) = make(completions=[completion(0, [])], advantages=torch.ones(1), trained=torch.ones(1)).micro_batches(4)
    assert micro.ids.shape == (1, 2)
    assert not micro.completion_mask.any()
    assert micro.attention_mask.tolist() == [[1, 0]]


@pytest.mark.parametrize("rows", range(1, 7))
@pytest.mark.parametrize("sort", [False, True])
def test_every_sample_once_and_sorted(rows: int, sort: bool) -> None:
    micros = make().micro_batches(rows, sort=sort)
    samples = [sample for micro in micros for sample in micro.samples]
    assert sorted(samples) == list(range(5))
    lengths = [int(count) for micro in micros for count in micro.attention_mask.sum(dim=1)]
    assert lengths == sorted(lengths) if sort else samples == sorted(samples)
    assert all(micro.ids.shape[1] == max(2, int(micro.attention_mask.sum(dim=1).max())) for micro in micros)


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("of", ["old", "reference"])
def test_logprobs_return_to_their_tokens(rows: int, sort: bool, of: str) -> None:
    batch = make()
    fill(batch, rows, sort, of)
    assert getattr(batch, f"{of}_logprobs").tolist() == EXPECTED
    for micro in batch.micro_batches(3, sort=not sort):
        values = getattr(micro, f"{of}_logprobs")
        assert not values[~micro.completion_mask].any()
        for row, sample in enumerate(micro.samples):
            found = values[row, micro.completion_mask[row]].tolist()
            assert found == [100.0 * sample + t for t in range(len(ANSWERS[sample][1]))]


@given(
    st.lists(st.tuples(st.integers(0, 1), st.lists(st.integers(0, 9), max_size=6)), min_size=1, max_size=9),
    st.integers(1, 10),
    st.booleans(),
)
def test_no_token_is_lost_or_made(answers: list[tuple[int, list[int]]], rows: int, sort: bool) -> None:
    ones = torch.ones(len(answers))
    batch = make(completions=[completion(*answer) for answer in answers], advantages=ones, trained=ones)
    found: dict[int, list[int]] = {}
    for micro in batch.micro_batches(rows, sort=sort):
        for row, sample in enumerate(micro.samples):
            assert sample not in found
            prompt = PROMPTS[answers[sample][0]]
            assert micro.ids[row, micro.attention_mask[row].bool()].tolist() == [*prompt, *answers[sample][1]]
            found[sample] = micro.ids[row, 1:][micro.completion_mask[row]].tolist()
    assert found == {sample: tokens for sample, (_, tokens) in enumerate(answers)}


def test_old_logprobs_are_set_once() -> None:
    batch = make()
    fill(batch, 2, False)
    with pytest.raises(BatonError, match="OLD_LOGPROBS_SET"):
        fill(batch, 2, False)
    assert batch.old_logprobs is not None
    assert batch.old_logprobs.tolist() == EXPECTED


def wrong_pieces() -> dict[str, Any]:
    micros = make().micro_batches(2)
    zeros = [torch.zeros(micro.completion_mask.shape) for micro in micros]
    longer = [dataclasses.replace(micros[0], completion_mask=torch.ones(2, 3, dtype=torch.bool)), *micros[1:]]
    return {
        "one left out": (micros[:-1], zeros[:-1]),
        "one twice": ([*micros, micros[0]], [*zeros, zeros[0]]),
        "other shape": (micros, [zeros[0][:, :1], *zeros[1:]]),
        "of other tokens": (longer, zeros),
    }


@pytest.mark.parametrize("name", wrong_pieces())
def test_logprobs_that_are_not_of_all_samples(name: str) -> None:
    batch = make()
    with pytest.raises(BatonError, match="LOGPROBS_INCOMPLETE"):
        batch.set_old_logprobs(*wrong_pieces()[name])
    assert batch.old_logprobs is None


def test_epochs() -> None:
    make().check_epoch(3)
    with pytest.raises(BatonError, match=r"STALE_COMPLETION(.|\n)*weight epochs 3"):
        make().check_epoch(4)
    make().check_epoch(4, allow=True)
    mixed = make(completions=[completion(*answer, epoch=2 + (i > 0)) for i, answer in enumerate(ANSWERS)])
    with pytest.raises(BatonError, match="weight epochs 2, 3"):
        mixed.check_epoch(3)


@pytest.mark.parametrize(
    "changes",
    [
        {"advantages": torch.zeros(4)},
        {"trained": torch.ones(6)},
        {"advantages": torch.full((5,), math.nan)},
        {"prompts": [[5], []]},
        {"prompts": [[5]]},
        {"completions": [completion(0, [1, 2], logprobs=np.zeros(1, np.float32))] * 5},
    ],
    ids=str,
)
def test_parts_that_do_not_fit(changes: dict[str, Any]) -> None:
    with pytest.raises(BatonError, match="BAD_GENERATED_BATCH"):
        make(**changes)


def same(one: MicroBatch, other: MicroBatch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("known", [(), ("old",), ("old", "reference")])
@pytest.mark.parametrize("empty", [False, True])
def test_state_survives_a_file(known: tuple[str, ...], empty: bool) -> None:
    none: dict[str, Any] = {"completions": [], "advantages": torch.zeros(0), "trained": torch.zeros(0)}
    batch = make(**none) if empty else make()
    for of in known:
        fill(batch, 2, True, of)
    file = io.BytesIO()
    torch.save(batch.state(), file)
    file.seek(0)
    again = GeneratedBatch.from_state(torch.load(file, weights_only=True))
    assert again.weight_epoch == 3
    for one, other in zip(batch.micro_batches(2), again.micro_batches(2), strict=True):
        assert same(one, other)
    for one, other in zip(batch.completions, again.completions, strict=True):
        assert (one.prompt, one.sample, one.finish, one.weight_epoch) == (
            *(other.prompt, other.sample, other.finish, other.weight_epoch),
        )
        assert one.tokens.dtype == other.tokens.dtype
    if "old" in known:
        with pytest.raises(BatonError, match="OLD_LOGPROBS_SET"):
            fill(again, 2, False)


def test_a_state_does_not_follow_its_batch() -> None:
    batch = make()
    state = batch.state()
    batch.trained[:] = False
    assert state["trained"].tolist() == [True, True, False, True, True]


def test_to_moves_all_tensors() -> None:
    batch = make()
    fill(batch, 2, False)
    moved = batch.micro_batches(2)[0].to("meta")
    tensors = [getattr(moved, field.name) for field in dataclasses.fields(moved)]
    assert {each.device.type for each in tensors if isinstance(each, torch.Tensor)} == {"meta"}
    assert moved.samples == (0, 1)
