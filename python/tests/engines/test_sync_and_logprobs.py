"""Whole handoffs with real processes: after each sync the engine is the trainer, by sums, by bits and by logprobs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from harness import Engine, Ranks, Run

#: (mean, max) difference of logprobs between trainer and engine.
BOUNDS = {"float32": (1e-4, 1e-4), "bfloat16": (0.01, 0.2)}
GRANULE = 2 << 20
#: How late sums are made on purpose: later than a sleep would be done, or than a sync and a wake on a busy machine.
LATE_SECONDS = {"than sleep": 0.5, "than the cache": 4.0}
PROMPTS = [[5], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [99, 0, 42], [7] * 20]


def check_logprobs(engine: Engine, model: Any, dtype: str) -> None:
    differences = []
    for prompt, group in zip(PROMPTS, engine.generate(PROMPTS, samples=3, temperature=0.9, max_tokens=24), strict=True):
        for tokens, logprobs, _ in group:
            differences.append(np.abs(reference.logprobs(model, prompt, tokens, 0.9) - logprobs))
    found = np.concatenate(differences)
    assert found.size == 4 * 3 * 24
    mean, largest = BOUNDS[dtype]
    assert found.mean() <= mean
    assert found.max() <= largest


@pytest.mark.parametrize(
    ("kind", "tied", "kv_heads", "tp", "dtype", "world", "stage"),
    [
        ("qwen2", True, 2, 1, "float32", 3, 3),
        ("llama", False, 4, 2, "float32", 4, 3),
        ("qwen2", False, 2, 4, "float32", 3, 3),
        ("llama", True, 8, 1, "bfloat16", 1, 1),
        ("qwen2", False, 2, 2, "bfloat16", 3, 3),
        ("qwen2", True, 2, 4, "bfloat16", 4, 2),
    ],
)
def test_the_engine_is_the_trainer(
    tmp_path: Path, kind: str, tied: bool, kv_heads: int, tp: int, dtype: str, world: int, stage: int
) -> None:
    model = reference.make(kind, dtype, tied=tied, kv_heads=kv_heads)
    with Run() as run:
        engine = Engine(run, reference.save_config(model, tmp_path), tp=tp, dtype=dtype)
        ranks = Ranks(run, reference.tensors(model), world, stage)
        engine.connect()
        assert engine.ready.vocabulary_size == reference.VOCABULARY
        before = run.used_bytes()
        assert max(before[world:], default=0) == 0
        synced = engine.handoff(ranks, compare=True)
        assert [plan.fallback for plan in engine.plans] == [None] * tp
        assert synced.sums_agree
        assert [worker.compared for worker in synced.workers] == [[]] * tp
        assert [worker.copied_bytes for worker in synced.workers] == [plan.copy_bytes for plan in engine.plans]
        check_logprobs(engine, model, dtype)
        awake = run.used_bytes()
        left = engine.sleep().left_bytes
        asleep = run.used_bytes()
        for gpu in range(4):
            held = engine.ready.weight_bytes + engine.ready.cache_bytes if gpu < tp else 0
            assert awake[gpu] - asleep[gpu] >= held
            if gpu >= world and gpu < tp:  # nobody else is there
                assert left[gpu] == asleep[gpu]
            # Two small tables of libbaton's kernels stay: the checksum's, of trainer and worker, and the plan's.
            assert asleep[gpu] - before[gpu] <= 3 * GRANULE

        # The optimizer moves the weights where they lie; the plan stays.
        other = reference.make(kind, dtype, tied=tied, kv_heads=kv_heads, seed=1)
        ranks.train(reference.tensors(other))
        assert engine.handoff(ranks).sums_agree
        check_logprobs(engine, other, dtype)
        assert run.used_bytes() == awake
        engine.sleep()
        assert run.used_bytes() == asleep
        assert engine.shutdown() == 0
        assert all(now <= then + GRANULE for now, then in zip(run.used_bytes(), before, strict=True))


def test_float32_is_rounded_on_its_way(tmp_path: Path) -> None:
    """The trainer has float32 parameters, the engine bfloat16: by the copy plan, as load_weights rounds them."""
    model = reference.make("qwen2", "float32", tied=True, kv_heads=2)
    with Run() as run:
        engine = Engine(run, reference.save_config(model, tmp_path), tp=2, dtype="bfloat16")
        ranks = Ranks(run, reference.tensors(model), 3, 3)
        engine.connect()
        synced = engine.handoff(ranks, compare=True)
        assert [plan.fallback for plan in engine.plans] == [None, None]
        assert synced.sums_agree
        assert [worker.compared for worker in synced.workers] == [[], []]
        check_logprobs(engine, reference.make("qwen2", "float32", tied=True, kv_heads=2).bfloat16(), "bfloat16")
        other = reference.make("qwen2", "float32", tied=True, kv_heads=2, seed=1)
        ranks.train(reference.tensors(other))
        assert engine.sync(ranks).sums_agree
        check_logprobs(engine, other.bfloat16(), "bfloat16")


def test_other_conversions_use_the_engines_own_load_weights_and_say_so(tmp_path: Path) -> None:
    """The trainer has bfloat16 parameters, the engine float32: no copies, but right weights."""
    model = reference.make("qwen2", "bfloat16", tied=True, kv_heads=2)
    with Run() as run:
        engine = Engine(run, reference.save_config(model, tmp_path), tp=2, dtype="float32")
        ranks = Ranks(run, reference.tensors(model), 3, 3)
        engine.connect()
        synced = engine.handoff(ranks, compare=True)
        for plan in engine.plans:
            assert plan.fallback is not None
            assert "converted from torch.bfloat16 to torch.float32" in plan.fallback
        assert synced.sums_agree
        assert [worker.compared for worker in synced.workers] == [None, None]
        # Not model.float(): its rotary table would stay rounded.
        exact = reference.make("qwen2", "float32", tied=True, kv_heads=2)
        exact.load_state_dict(model.state_dict())
        check_logprobs(engine, exact, "float32")


def test_faults_in_a_sync_are_seen(tmp_path: Path) -> None:
    model = reference.make("llama", "bfloat16", tied=True, kv_heads=4)
    faults = "worker.sync.flip-bit@2:1,worker.sync.skip-copies@3,worker.sync.stale-epoch@4"
    with Run() as run:
        engine = Engine(run, reference.save_config(model, tmp_path), tp=2, dtype="bfloat16", faults=faults)
        ranks = Ranks(run, reference.tensors(model), 2, 3)
        engine.connect()
        assert engine.handoff(ranks, compare=True).sums_agree
        flipped = engine.sync(ranks, compare=True)
        assert not flipped.sums_agree
        assert [worker.compared for worker in flipped.workers] == [[], ["model.embed_tokens.weight"]]
        ranks.train(reference.tensors(reference.make("llama", "bfloat16", tied=True, kv_heads=4, seed=2)))
        skipped = engine.sync(ranks, compare=True)
        assert not skipped.sums_agree
        assert "model.norm.weight" in (skipped.workers[0].compared or [])
        stale = engine.sync(ranks)
        assert stale.sums_agree
        assert [worker.epoch for worker in stale.workers] == [engine.epoch - 1] * 2
        engine.epoch -= 1  # the completions say so too
        engine.generate([[1, 2]])


def test_weights_stay_until_they_are_summed_up(tmp_path: Path) -> None:
    model = reference.make("llama", "bfloat16", tied=True, kv_heads=4)
    with Run() as run:
        folder = reference.save_config(model, tmp_path)
        engine = Engine(run, folder, tp=2, dtype="bfloat16", faults=f"worker.sums.late@2:{LATE_SECONDS['than sleep']}")
        ranks = Ranks(run, reference.tensors(model), 2, 3)
        engine.connect()
        assert engine.handoff(ranks).sums_agree
        # Sleep takes the weights away that are to be summed up.
        assert engine.sync(ranks, meanwhile=engine.sleep).sums_agree


def test_a_cache_wakes_beside_the_sums(tmp_path: Path) -> None:
    model = reference.make("llama", "bfloat16", tied=True, kv_heads=4)
    with Run() as run:
        folder = reference.save_config(model, tmp_path)
        late = LATE_SECONDS["than the cache"]
        engine = Engine(run, folder, tp=2, dtype="bfloat16", faults=f"worker.sums.late@2:1/{late}")
        ranks = Ranks(run, reference.tensors(model), 2, 3)
        engine.connect()
        assert engine.handoff(ranks).sums_agree
        engine.sleep()
        engine.wake("weights")
        began, awake = time.monotonic(), 0.0

        def wake() -> None:
            nonlocal awake
            engine.wake("kv_cache")
            awake = time.monotonic()

        assert engine.sync(ranks, meanwhile=wake).sums_agree
        assert awake - began < late <= time.monotonic() - began
