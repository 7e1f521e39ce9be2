"""What is in the pool, what is not, and who waits for what comes back in the background."""

from __future__ import annotations

import pytest
from test_pauses import Results, run_job


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> list[Results]:
    folder = tmp_path_factory.mktemp("placement")
    return run_job(folder, 2, "placement.py", launcher="accelerate", BATON_STANDIN_GRANULARITY="65536")


@pytest.fixture(scope="module")
def placement(job) -> list[Results]:
    return [results["placement"] for results in job]


def test_state_made_outside_of_the_training_memory_is_moved_in(placement):
    for found in placement:
        assert found["same_memory"]
        assert found["wrong_place"] == []
        assert found["reference_bytes"] > 70_000
        assert found["reference_same"]


def test_the_scripts_own_tensors_stay_usable_during_a_pause(placement):
    for found in placement:
        assert found["prompts_started_in_the_pool"]
        assert found["prompts_left_the_pool"]
        assert all(pause["used"] for pause in found["pauses"])


def test_a_forward_pass_during_a_pause_is_an_error(placement):
    for found in placement:
        assert all(pause["forward_codes"] == ["STATE_AWAY", "STATE_AWAY"] for pause in found["pauses"])


def test_memory_that_numpy_looks_at_is_kept_mapped(placement):
    for found in placement:
        for pause in found["pauses"]:
            assert pause["numpy_used"]
            assert pause["kept_bytes"] == pause["segment_bytes"]


def test_a_reference_model_goes_first_and_is_saved_once(placement):
    for found in placement:
        first, second = found["pauses"]
        assert first["reference_gone"]
        assert second["reference_gone"]
        # At first clean is what all ranks of the node have in common (see test_sharing).
        shared = found["shared_bytes"]
        assert shared - first["segment_bytes"] <= first["clean_bytes"] <= shared
        # All but what lies in the one segment that stays for numpy.
        assert second["clean_bytes"] >= found["reference_bytes"] - first["segment_bytes"]


def test_a_write_to_a_frozen_tensor_is_an_error(placement):
    for found in placement:
        assert found["frozen_changed"]["code"] == "FROZEN_CHANGED"


def test_what_cannot_be_moved_in_is_named(placement):
    for found in placement:
        assert found["shared"]["code"] == "CANNOT_MOVE_IN"
        assert "frozen[0].weight is shared with other processes" in found["shared"]["found"]
        assert found["overlapping"]["code"] == "CANNOT_MOVE_IN"
        assert "frozen[0].left and frozen[0].right overlap" in found["overlapping"]["found"]


def test_misuse_is_an_error_of_its_own(placement):
    for found in placement:
        assert found["unsupported"]["code"] == "UNSUPPORTED_DEEPSPEED"
        assert found["second_engine"]["code"] == "ENGINE_ATTACHED"
        assert found["pause_inside_a_step"]["code"] == "WRONG_STATE"
        assert found["resume_twice"]["code"] == "WRONG_STATE"


#: What each stage of ZeRO has of DeepSpeed's ways to optimizer state, besides those that all have.
FULL = {"master", "moment", "set_master", "set_moment", "after_load"}
LOCAL = {"local_master", "local_moment", "set_local_master", "set_local_moment"}
WAYS = {0: set[str](), 1: FULL, 2: FULL, 3: FULL | LOCAL}
#: Those whose result says whether what they read or wrote was right.
JUDGED = FULL | LOCAL | {"load", "state_dict"}


@pytest.mark.parametrize("stage", WAYS)
def test_whoever_needs_optimizer_state_waits_for_it(job, stage):
    for results in job:
        found = {name: case for name, case in results[f"returning{stage}"].items() if name != "gradient"}
        assert found.keys() == WAYS[stage] | {"step", "next_pause", "save", "load", "state_dict"}
        for name, case in found.items():
            assert case["pending_bytes"] > 0, name
            assert case["closed"], name
            assert not case["closed_after"], name
            assert case["events"].count("wait") == 1, name
            assert case["returned_bytes"] > 0, name
            assert case["result"] or name not in JUDGED, name


@pytest.mark.parametrize("stage", WAYS)
def test_gradients_are_there_without_a_wait(job, stage):
    for results in job:
        case = results[f"returning{stage}"]["gradient"]
        assert not case["is_zero"]
        assert case["result"]
        assert case["closed_after"]
        assert case["events"] == []


@pytest.mark.parametrize("stage", WAYS)
def test_forward_and_backward_run_before_the_step_waits(job, stage):
    for results in job:
        assert results[f"returning{stage}"]["step"]["events"] == ["backward", "backward", "wait", "step"]


def test_an_engine_that_accelerate_builds_trains_the_same(job):
    for results in job:
        found = results["accelerated"]
        assert found["is_the_engine"]
        assert found["complete"]
        assert found["steps"] == 3
        assert found["paused"] == found["plain"]


def test_a_step_inside_of_accelerates_backward_waits(job):
    for results in job:
        # Two micro-batches a step. Before the first step there may be nothing that comes back late.
        gate = results["accelerated"]["gate"][2:]
        assert gate == [[True, True], [True, False]] * 2
