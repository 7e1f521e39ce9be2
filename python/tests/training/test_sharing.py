"""What never changes and is the same on all ranks of a node lies in host memory once."""

from __future__ import annotations

from pathlib import Path

import pytest
from training.test_pauses import each, run_job


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("sharing")
    return run_job(folder, 3, "sharing.py", BATON_STANDIN_GRANULARITY="4096")


def of(job, what: str):
    return [(where, result) for where, result in each(job) if what in where]


def test_a_reference_model_is_shared_but_for_what_is_not_the_same(job):
    for where, result in of(job, "reference"):
        # Under ZeRO-3 the policy is partitioned; this reference is not.
        assert result["shared_bytes"] == result["reference_bytes"] - result["odd_bytes"] > 0, where
        assert len(result["files"]) == 1, where
    # The one file of the node.
    assert len({tuple(result["files"]) for where, result in of(job, "zero2 reference")}) == 1


def test_what_is_shared_is_saved_by_no_rank_and_comes_back_verified(job):
    for where, result in of(job, "reference"):
        assert result["same"], where
        assert result["clean"][0] == result["shared_bytes"], where
        assert result["clean"][1] == result["reference_bytes"], where
        assert result["verified"] == [result["reference_bytes"]] * len(result["verified"]), where
        assert result["saved"][0] - result["saved"][1] == result["odd_bytes"], where


def test_the_base_under_adapters_is_shared_where_ranks_hold_it_whole(job):
    for where, result in of(job, "adapters"):
        if "zero3" in where:  # partitions are not the same, unless by chance: norms are all ones
            assert result["shared_bytes"] < result["base_bytes"] / 20, where
        else:
            assert result["shared_bytes"] == result["base_bytes"], where
        assert result["clean"][-1] == result["base_bytes"] > 0, where
