"""LoRA: an engine gets the base with the adapters merged in, and the base stays what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from extent import ALL
from training.test_pauses import each, run_job

#: Handoffs; the most under ZeRO-2, where they are cheapest.
FEW, MANY, STEP_EVERY = (100, 1000, 50) if ALL else (50, 200, 50)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("adapters")
    return run_job(folder, 2, "adapters.py", str(FEW), str(MANY), str(STEP_EVERY), BATON_STANDIN_GRANULARITY="4096")


def test_the_engine_gets_weights_under_the_names_of_the_base_model(job):
    for where, result in each(job):
        assert result["names"], where


def test_merged_weights_are_those_of_pefts_own_merge_however_many_cycles(job):
    for where, result in each(job):
        assert len(result["differences"]) == 2 * len(result["saved_bytes"]) // STEP_EVERY >= 2, where
        # One unit: the sums of a product may be formed in another order.
        assert max(result["differences"]) <= 1.0, where
        # Between steps they stay, after a step they are others.
        firsts, lasts = result["epochs"][::2], result["epochs"][1::2]
        assert firsts == lasts, where
        assert len(set(firsts)) == len(firsts), where


def test_the_base_is_never_written_and_saved_once(job):
    for where, result in each(job):
        assert result["base_the_same"], where
        saved = result["saved_bytes"]
        # What all ranks have alike is saved by none of them (see test_sharing).
        assert saved[0] - saved[-1] >= result["base_bytes"] - result["shared_bytes"], where
        assert len(set(saved[2:])) == 1, where


def test_merged_weights_take_no_memory_outside_of_a_handoff(job):
    for where, result in each(job):
        assert result["merged_away_at_first"], where
        assert result["merged_away"], where
        assert result["kept_merged"], where
        assert result["adapted"] > 0, where


def test_a_policy_whose_adapters_are_off_is_not_handed_over(job):
    for where, result in each(job):
        assert result["adapter_off"] == "ADAPTER_OFF", where
