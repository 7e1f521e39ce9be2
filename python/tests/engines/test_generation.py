"""Sampling by a running engine: what a request gets depends on itself alone."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from harness import Engine, EngineFailed, Ranks, Run

from baton.engines.adapter import Request
from baton.engines.requests import check_requests
from baton.errors import BatonError

PROMPTS = [[int(t) for t in np.random.default_rng(i).integers(0, 100, 1 + i % 9)] for i in range(12)]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory):
    """The same float32 weights with 1 and with 4 workers."""
    model = reference.make("qwen2", "float32", tied=True, kv_heads=2)
    folder = reference.save_config(model, tmp_path_factory.mktemp("model"))
    with Run(gpus=8) as run:
        engines = [
            Engine(run, folder, tp=1, dtype="float32", index=0),
            Engine(run, folder, tp=4, dtype="float32", index=1),
        ]
        ranks = Ranks(run, reference.tensors(model), 2, 3)
        for engine in engines:
            engine.connect()
            assert engine.handoff(ranks).sums_agree
        yield engines


def tokens_of(groups: Any):
    return [[sample[0] for sample in group] for group in groups]


def test_tensor_parallelism_does_not_change_the_samples(engines: list[Engine]) -> None:
    cuts = {"top_k": 40, "top_p": 0.9, "min_p": 0.01}
    one, four = (tokens_of(e.generate(PROMPTS, samples=3, max_tokens=12, seed=4, **cuts)) for e in engines)
    assert one == four


def test_batch_composition_does_not_change_the_samples(engines: list[Engine]) -> None:
    together = tokens_of(engines[1].generate(PROMPTS, samples=2, max_tokens=10, seed=9))
    backwards = tokens_of(
        engines[1].generate(PROMPTS[::-1], samples=2, max_tokens=10, seed=9, streams=range(11, -1, -1))
    )
    assert backwards[::-1] == together
    for number in (0, 5, 11):
        alone = engines[1].generate([PROMPTS[number]], samples=2, max_tokens=10, seed=9, streams=[number])
        assert tokens_of(alone)[0] == together[number]


def test_samples_streams_and_seeds_differ(engines: list[Engine]) -> None:
    groups = tokens_of(engines[0].generate([[1, 2, 3]] * 2, samples=[3, 2], max_tokens=16))
    assert [len(group) for group in groups] == [3, 2]
    flat = [tuple(sample) for group in groups for sample in group]
    assert len(set(flat)) == 5
    assert tokens_of(engines[0].generate([[1, 2, 3]], max_tokens=16, seed=2))[0][0] not in groups[0]
    again = tokens_of(engines[0].generate([[1, 2, 3]] * 2, samples=[3, 2], max_tokens=16))
    assert again == groups


def test_greedy_is_the_most_likely_path(engines: list[Engine]) -> None:
    cold = engines[0].generate(PROMPTS, samples=2, temperature=0.0, max_tokens=8)
    other_seed = engines[1].generate(PROMPTS, samples=2, temperature=0.0, max_tokens=8, seed=77)
    assert tokens_of(cold) == tokens_of(other_seed)
    assert all(group[0][0] == group[1][0] for group in cold)


@pytest.mark.parametrize("cuts", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_sampling_among_the_likeliest_alone_is_greedy(engines: list[Engine], cuts: dict[str, Any]) -> None:
    greedy = engines[0].generate(PROMPTS, temperature=0.0, max_tokens=8)
    assert tokens_of(engines[0].generate(PROMPTS, temperature=1.0, max_tokens=8, **cuts)) == tokens_of(greedy)


def test_generation_ends_at_stop_tokens_and_keeps_them(engines: list[Engine]) -> None:
    free = engines[1].generate(PROMPTS, samples=4, max_tokens=12, seed=5)
    stop = free[3][0][0][4]
    stopped = engines[1].generate(PROMPTS, samples=4, max_tokens=12, seed=5, stop_token_ids=[stop, 98])
    ended = 0
    for before, after in zip(chain(*free), chain(*stopped), strict=True):
        cut = next((i + 1 for i, token in enumerate(before[0]) if token in (stop, 98)), None)
        assert after[0] == before[0][:cut]
        assert after[2] == ("length" if cut is None else "stop")
        assert len(after[1]) == len(after[0])
        ended += cut is not None
    assert 1 <= ended < 48


def test_more_sequences_than_slots_are_refilled(engines: list[Engine]) -> None:
    """16 slots, 120 sequences of different lengths (they end at different stop tokens)."""
    prompts = PROMPTS * 10
    many = engines[1].generate(
        prompts, max_tokens=12, seed=3, stop_token_ids=list(range(20)), streams=list(range(len(prompts)))
    )
    assert len({len(group[0][0]) for group in many}) > 5
    for number in (3, 64, 119):
        alone = engines[1].generate(
            [prompts[number]], max_tokens=12, seed=3, stop_token_ids=list(range(20)), streams=[number]
        )
        assert alone[0][0][0] == many[number][0][0]


def test_first_tokens_follow_the_distribution(engines: list[Engine]) -> None:
    """One prompt, 4,000 samples: counts against the trainer's own probabilities."""
    model = reference.make("qwen2", "float32", tied=True, kv_heads=2)
    prompt = PROMPTS[7]
    groups = engines[0].generate([prompt], samples=4000, max_tokens=1, temperature=0.5)
    found = np.bincount([sample[0][0] for sample in groups[0]], minlength=100)
    wanted = 4000 * np.exp([reference.logprobs(model, prompt, [token], 0.5)[0] for token in range(100)])
    common = wanted >= 5
    assert common.sum() > 10
    rest = max(1e-9, wanted[~common].sum())
    chi = ((found[common] - wanted[common]) ** 2 / wanted[common]).sum() + (found[~common].sum() - rest) ** 2 / rest
    # Mean is the number of cells, standard deviation the root of twice that.
    assert chi < common.sum() + 5 * np.sqrt(2 * common.sum())


def test_length_ends_at_the_longest_sequence(engines: list[Engine]) -> None:
    groups = engines[0].generate([[1] * 60, [2]], max_tokens=30)
    assert [(len(group[0][0]), group[0][2]) for group in groups] == [(4, "length"), (30, "length")]


def test_nothing_to_generate(engines: list[Engine]) -> None:
    assert engines[1].generate([]) == []


@pytest.mark.parametrize(
    ("prompt", "code"), [([1] * 64, "PROMPT_TOO_LONG"), ([], "PROMPT_EMPTY"), ([100], "PROMPT_TOKEN_UNKNOWN")]
)
def test_bad_prompts_are_found(prompt: list[int], code: str) -> None:
    def request(tokens: list[int]) -> Request:
        return Request(np.array(tokens, dtype=np.uint32), 1, 0)

    check_requests([request([1] * 63), request([99])], 64, 100)
    with pytest.raises(BatonError) as error:
        check_requests([request([1]), request(prompt)], 64, 100)
    assert error.value.code == code
    assert "Prompt 1 " in error.value.message


def test_a_bad_prompt_ends_the_engine_with_its_name(tmp_path: Path) -> None:
    model = reference.make("qwen2", "float32", tied=True, kv_heads=2)
    with Run() as run:
        engine = Engine(run, reference.save_config(model, tmp_path), tp=1, dtype="float32")
        ranks = Ranks(run, reference.tensors(model), 1, 2)
        engine.connect().handoff(ranks)
        with pytest.raises(EngineFailed) as error:
            engine.generate([[1], [1] * 64])
        assert error.value.failure.code == "PROMPT_TOO_LONG"
        assert engine.process.wait(5) == 1
