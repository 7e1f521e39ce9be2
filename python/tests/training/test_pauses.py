"""DeepSpeed trains the same, to the last bit, when its memory goes away and comes back in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from extent import ALL
from standin import Standin, require_build

JOBS = Path(__file__).parent / "jobs"

Results = dict[str, dict[str, Any]]


def run_job(
    folder: Path, ranks: int, name: str, *arguments: str, launcher: str = "torchrun", **more: Any
) -> list[Results]:
    """The results of every rank of one job."""
    require_build()
    out = folder / "out"
    out.mkdir()
    done = Standin(folder).torchrun(ranks, JOBS / name, *arguments, launcher=launcher, JOB_OUT=str(out), **more)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module", params=[2, 3] if ALL else [3], ids="{}-ranks".format)
def job(request, tmp_path_factory) -> list[Results]:
    folder = tmp_path_factory.mktemp(f"pauses{request.param}")
    return run_job(folder, request.param, "pauses.py", BATON_STANDIN_GRANULARITY="65536")


def each(job: list[Results]):
    """Rank, shape and what the paused training of it found."""
    for rank, results in enumerate(job):
        for name, result in results.items():
            yield f"rank {rank}, {name}", result


def test_losses_and_gradient_norms_are_the_same_to_the_bit(job):
    for where, result in each(job):
        losses = result["stock"]["losses"]
        assert len(set(losses)) == len(losses) >= 4, where
        assert result["paused"]["losses"] == result["stock"]["losses"], where
        assert result["paused"]["norms"] == result["stock"]["norms"], where


def test_every_tensor_of_the_training_state_is_in_the_pool(job):
    for where, result in each(job):
        assert result["paused"]["wrong_place"] == [], where
        assert all(handoff["outside_bytes"] == 0 for handoff in result["paused"]["handoffs"]), where


def test_optimizer_state_is_caught_in_the_first_step(job):
    for where, result in each(job):
        # Only the optimizer that DeepSpeed has for bf16 without ZeRO makes its state while it is built.
        assert result["paused"]["complete_at_attach"] == where.endswith(", zero0"), where
        assert result["paused"]["complete"], where
        roles = result["paused"]["roles"]
        assert roles["moment"] >= result["paused"]["moments_by_formula"] > 0, where
        assert roles["parameter"] > 0, where


def test_the_memory_is_gone_during_a_pause_and_back_at_the_same_addresses(job):
    for where, result in each(job):
        for handoff in result["paused"]["handoffs"]:
            at = f"{where}, {handoff['where']} of step {handoff['step']}"
            assert handoff["still_readable"] == [], at
            assert handoff["kept_bytes"] == handoff["mapped_bytes_paused"] == 0, at
            assert handoff["released_bytes"] == handoff["mapped_bytes_before"], at
            assert handoff["same_addresses"], at


def test_what_is_released_is_at_least_the_state_by_the_stages_formula(job):
    for where, result in each(job):
        for handoff in result["paused"]["handoffs"]:
            assert handoff["released_bytes"] >= 0.95 * handoff["state_bytes"] > 0, where
        measured = result["paused"]["roles"]
        state = measured["parameter"] + measured["frozen"] + measured["master"] + measured["moment"]
        assert state == pytest.approx(result["paused"]["handoffs"][-1]["state_bytes"], rel=0.02), where


def test_the_first_stage_keeps_what_the_engine_is_fed_from(job):
    for where, result in each(job):
        for handoff in result["paused"]["handoffs"]:
            assert handoff["engine_readable"], where
            assert handoff["kept_for_engine_bytes"] == handoff["engine_segments_bytes"] > 0, where
            assert handoff["kept_for_engine_bytes"] < handoff["mapped_bytes_before"], where


def test_gradients_are_saved_in_mid_accumulation_and_dead_after_a_step(job):
    for where, result in each(job):
        handoffs = result["paused"]["handoffs"]
        assert all(handoff["live_gradients"] == (handoff["where"] == "middle") for handoff in handoffs), where
        assert all(handoff["zeros"] for handoff in handoffs), where
        if result["paused"]["roles"]["communication"]:
            assert all(handoff["reported_dead_bytes"] >= handoff["dead_bytes"] > 0 for handoff in handoffs), where


def test_frozen_weights_are_saved_once(job):
    for where, result in each(job):
        handoffs = result["paused"]["handoffs"]
        if "frozen" in where:
            # At first clean is what all ranks of the node have in common (see test_sharing): some of it or nothing.
            assert handoffs[0]["clean_bytes"] == handoffs[0]["shared_bytes"], where
            assert handoffs[0]["frozen_bytes"] > 0, where
            assert all(handoff["clean_bytes"] >= handoff["frozen_bytes"] for handoff in handoffs[1:]), where
