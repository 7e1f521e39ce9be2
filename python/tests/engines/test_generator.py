"""The model and the batching loop in this process: no workers, no pools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import torch

from baton.engines import model_config as configuration
from baton.engines.adapter import Request, Sampling
from baton.engines.small import generate
from baton.engines.small.cache import Cache
from baton.engines.small.generate import Generator
from baton.engines.small.group import Group
from baton.engines.small.model import CausalModel
from baton.engines.small.shard import Shard
from baton.errors import BatonError


def make(model: Any, slots: int = 4, length: int = 40) -> Generator:
    """All memory begins as NaN, as memory that was mapped anew may."""
    config = configuration.parse(model.config.to_dict())
    shard = Shard.of(config, 0, 1)
    dtype = next(model.parameters()).dtype

    def storage(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.full(shape, torch.nan, dtype=dtype)

    engine = CausalModel(config, shard, storage, Group(0, 1), dtype, length)
    engine.load_weights(reference.tensors(model).items())
    return Generator(engine, Cache(config, shard, length, slots, storage))


def requests(lengths: list[int], samples: int) -> list[Request]:
    generator = np.random.default_rng(0)
    return [
        Request(generator.integers(0, reference.VOCABULARY, length).astype(np.uint32), samples, stream)
        for stream, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("prefill_tokens", [8, 16384])
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_ragged_prompts_in_reused_slots_of_undefined_memory(
    monkeypatch: pytest.MonkeyPatch, kind: str, prefill_tokens: int
) -> None:
    monkeypatch.setattr(generate, "PREFILL_TOKENS", prefill_tokens)
    model = reference.make(kind, "float32", tied=kind == "qwen2", kv_heads=2)
    asked = requests([1, 9, 3, 30, 3, 17], 3)
    stop = tuple(range(5))
    groups = make(model).generate(asked, Sampling(0.8, 0, 0.95, 0.0, 10, stop, 6), lambda *_: None)
    for request, group in zip(asked, groups, strict=True):
        assert len(group) == 3
        for sample in group:
            ended = int(sample.tokens[-1]) in stop
            assert sample.finish == ("stop" if ended else "length")
            assert ended or len(sample.tokens) == 10
            expected = reference.logprobs(model, request.prompt.tolist(), sample.tokens.tolist(), 0.8)
            np.testing.assert_allclose(sample.logprobs, expected, atol=1e-4)


def test_progress_counts_up_to_everything() -> None:
    model = reference.make("llama", "float32", tied=False, kv_heads=8)
    seen: list[tuple[int, int]] = []
    make(model).generate(requests([2] * 5, 2), Sampling(1.0, 0, 1.0, 0.0, 3, (), 1), lambda *now: seen.append(now))
    assert seen == sorted(seen)
    assert seen[-1] == (10, 30)


def test_weights_that_are_nan_are_an_error() -> None:
    model = reference.make("llama", "float32", tied=False, kv_heads=8)
    generator = make(model)
    next(iter(generator.model.parameters())).fill_(torch.nan)
    with pytest.raises(BatonError) as error:
        generator.generate(requests([2], 1), Sampling(1.0, 0, 1.0, 0.0, 3, (), 1), lambda *_: None)
    assert error.value.code == "LOGITS_NOT_FINITE"


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mixtral"},
        {"hidden_act": "gelu"},
        {"use_sliding_window": True},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
)
def test_models_that_it_would_run_wrongly_are_refused(changes: dict[str, Any]) -> None:
    values = reference.make("qwen2", "float32", tied=True, kv_heads=2).config.to_dict()
    with pytest.raises(BatonError) as error:
        configuration.parse(values | changes)
    assert error.value.code == "MODEL_UNSUPPORTED"


def test_the_rope_base_is_found_in_old_and_new_files() -> None:
    values = reference.make("qwen2", "float32", tied=True, kv_heads=2).config.to_dict()
    assert configuration.parse(values).rope_theta == 5000.0
    old = {name: value for name, value in values.items() if name != "rope_parameters"}
    assert configuration.parse(old | {"rope_theta": 7000.0, "rope_scaling": None}).rope_theta == 7000.0
    assert configuration.parse(old).rope_theta == 10000.0


@pytest.mark.parametrize(("tp", "fits"), [(1, True), (2, True), (4, True), (8, True), (3, False), (16, False)])
def test_tensor_parallel_sizes_that_do_not_divide_are_refused(tp: int, fits: bool) -> None:
    config = configuration.parse(reference.make("qwen2", "float32", tied=True, kv_heads=2).config.to_dict())
    if fits:
        shards = [Shard.of(config, rank, tp) for rank in range(tp)]
        assert sum(shard.heads for shard in shards) == 8
        assert sum(shard.vocabulary_rows for shard in shards) == 128
        return
    with pytest.raises(BatonError) as error:
        Shard.of(config, 0, tp)
    assert error.value.code == "TENSOR_PARALLEL_MISFIT"
