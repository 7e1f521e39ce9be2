"""The sampler: distributions, top-p, and draws that depend on nothing but their own stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.engines.adapter import Sampling
from baton.engines.small import sampler

ROWS = 20_000


def how(temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0) -> Sampling:
    return Sampling(temperature, top_k, top_p, min_p, max_tokens=1, stop_token_ids=(), seed=0)


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_tokens_follow_the_distribution(temperature: float, top_p: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    numbers = sampler.uniforms(sampler.stream_keys(3, np.arange(ROWS), 0), 0)
    tokens, logprobs = sampler.choose(logits.expand(ROWS, -1), how(temperature, top_p), numbers)
    full = torch.softmax(logits / temperature, -1).numpy().astype(np.float64)
    order = np.argsort(-full)
    kept = order[: 1 + int(np.searchsorted(np.cumsum(full[order]), top_p))] if top_p < 1 else order
    wanted = np.zeros_like(full)
    wanted[kept] = full[kept] / full[kept].sum()
    counts = np.bincount(tokens.numpy(), minlength=6)
    assert counts[wanted == 0].sum() == 0
    there = wanted > 0
    # 5 degrees of freedom at most: 25 is beyond one in 6,000; the numbers are fixed, so this does not flicker.
    assert chi_square(counts[there], ROWS * wanted[there]) < 25
    # Logprobs are those before top-p cuts it.
    np.testing.assert_allclose(logprobs.numpy(), np.log(full)[tokens.numpy()], atol=1e-5)


def test_greedy_takes_the_largest() -> None:
    logits = torch.randn(50, 30)
    tokens, logprobs = sampler.choose(logits, how(0.0, 0.3, 1), np.zeros(50))
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, -1).amax(-1))


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(0, 1000), st.integers(0, 5000))
@settings(max_examples=200, deadline=None)
def test_a_draw_depends_on_its_own_stream_only(seed: int, stream: int, sample: int, position: int) -> None:
    alone = sampler.uniforms(sampler.stream_keys(seed, [stream], [sample]), [position])[0]
    others = sampler.stream_keys(seed, [7, stream, 9], [1, sample, sample])
    assert sampler.uniforms(others, [0, position, 3])[1] == alone
    assert 0 <= alone < 1


def test_draws_are_uniform_and_different() -> None:
    streams, samples, positions = np.meshgrid(np.arange(40), np.arange(8), np.arange(64), indexing="ij")
    numbers = sampler.uniforms(sampler.stream_keys(11, streams.ravel(), samples.ravel()), positions.ravel())
    assert np.unique(numbers).size == numbers.size
    counts, _ = np.histogram(numbers, bins=50, range=(0, 1))
    assert chi_square(counts, np.full(50, numbers.size / 50)) < 100  # 49 degrees of freedom: one in 20,000
    grid = numbers.reshape(streams.shape)
    for axis in range(3):
        ahead, behind = np.moveaxis(grid, axis, 0)[1:], np.moveaxis(grid, axis, 0)[:-1]
        assert abs(np.corrcoef(ahead.ravel(), behind.ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_ends_of_the_interval_are_safe(top_p: float) -> None:
    logits = torch.randn(1000, 7)
    logits[:, [0, 6]] = -torch.inf
    for number in (0.0, 1 - 2.0**-53):
        tokens, logprobs = sampler.choose(logits, how(1.0, top_p), np.full(1000, number))
        assert set(tokens.tolist()) <= {1, 2, 3, 4, 5}
        assert torch.isfinite(logprobs).all()


@pytest.mark.parametrize(("top_p", "kept"), [(0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.99, 3)])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, kept: int) -> None:
    logits = torch.log(torch.tensor([0.3, 0.5, 0.2]))
    numbers = sampler.uniforms(sampler.stream_keys(1, np.arange(500), 0), 0)
    tokens, _ = sampler.choose(logits.expand(500, -1), how(1.0, top_p), numbers)
    assert set(tokens.tolist()) == {1, 0, 2} - set([2, 0][: 3 - kept])


def test_top_p_always_keeps_one_token() -> None:
    logits = torch.tensor([[0.0, 5.0, 0.0]])
    tokens, _ = sampler.choose(logits, how(1.0, 1e-9), np.array([0.99]))
    assert tokens.tolist() == [1]


@pytest.mark.parametrize(
    ("cuts", "kept"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 0}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"min_p": 0.5}, {1, 0}),
        ({"min_p": 0.41}, {1, 0}),
        ({"min_p": 0.39}, {1, 0, 2}),
        ({"min_p": 1.0}, {1}),
        # What is left has 0.7, of which the likeliest has 0.57: top-p counts on after the others have cut.
        ({"top_k": 2, "top_p": 0.55}, {1}),
        ({"top_k": 2, "top_p": 0.6}, {1, 0}),
        ({"min_p": 0.7, "top_p": 0.55}, {1}),
    ],
)
def test_top_k_and_min_p_keep_the_likeliest(cuts: dict[str, Any], kept: set[int]) -> None:
    probabilities = torch.tensor([0.3, 0.4, 0.16, 0.14])
    numbers = sampler.uniforms(sampler.stream_keys(1, np.arange(2000), 0), 0)
    tokens, logprobs = sampler.choose(torch.log(probabilities).expand(2000, -1), how(**cuts), numbers)
    assert set(tokens.tolist()) == kept
    torch.testing.assert_close(logprobs, torch.log(probabilities)[tokens])
    counts, wanted = torch.bincount(tokens, minlength=4).numpy(), probabilities.numpy()
    there = sorted(kept)
    assert chi_square(counts[there], 2000 * wanted[there] / wanted[there].sum()) < 25
