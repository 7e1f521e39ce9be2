from __future__ import annotations

import pickle

import pytest
import torch

from baton import faults
from baton.errors import BatonError
from baton.faults import Fault, Faults


def test_an_error_reads_as_what_went_wrong_and_what_to_do():
    error = BatonError("CODE", "It broke.", expected="one", found="two", action="Mend it.")
    assert str(error).splitlines() == [
        "CODE: It broke.",
        "  expected: one",
        "  found:    two",
        "  action:   Mend it.",
    ]


def test_an_error_survives_the_wire_and_a_pickle():
    error = BatonError("CODE", "It broke.", expected="one", found="two", action="Mend it.")
    assert BatonError.from_wire(error.to_wire()).to_wire() == error.to_wire()
    assert pickle.loads(pickle.dumps(error)).to_wire() == error.to_wire()


def test_an_unexpected_exception_keeps_its_text():
    error = BatonError.from_exception(ValueError("no such file"), "loading")
    assert error.code == "UNEXPECTED_ERROR"
    assert "loading failed: ValueError: no such file" in error.message


ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\n"
    "Search for `cudaErrorIllegalAddress' in https://docs.nvidia.com/cuda/ for more information.\n"
    "CUDA kernel errors might be asynchronously reported at some other API call."
)
ASSERT = ILLEGAL.replace("an illegal memory access was encountered", "device-side assert triggered")


def of_torch(text: str) -> Exception:
    return torch.AcceleratorError(text)


def of_driver(result: str) -> Exception:
    return BatonError("CUDA_CALL_FAILED", f"cuStreamSynchronize failed with {result}.", found=f"{result} (7) from x")


@pytest.mark.parametrize("error", [of_torch(ILLEGAL), of_driver("CUDA_ERROR_ILLEGAL_ADDRESS")])
def test_a_kernel_that_touched_what_is_not_there_is_an_error_of_its_own(error: Exception):
    elsewhere = BatonError.from_exception(error, "the training script")
    inside = BatonError.from_exception(error, "the rollout", away=True)
    assert elsewhere.code == inside.code == "CUDA_ILLEGAL_ACCESS"
    assert "training memory" in inside.action
    assert "training memory" not in elsewhere.action
    assert "CUDA_LAUNCH_BLOCKING=1" in elsewhere.action
    assert inside.found.endswith("while the training state was away for the rollout")
    assert "\n" not in inside.message


@pytest.mark.parametrize("error", [of_torch(ASSERT), of_driver("CUDA_ERROR_710")])
def test_a_kernel_whose_check_failed_is_an_error_of_its_own(error: Exception):
    found = BatonError.from_exception(error, "the rollout", away=True)
    assert found.code == "CUDA_DEVICE_ASSERT"
    assert found.action.startswith("An index is out of range")
    assert "training memory" in found.action


def test_other_errors_of_torch_stay_unexpected():
    error = torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device")
    assert BatonError.from_exception(error, "the rollout", away=True).code == "UNEXPECTED_ERROR"


GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:64199: Connection reset by peer"
)
NCCL = (
    "NCCL error in: NCCLUtils.cpp:77, remote process exited or there was a network error, NCCL version 2.28.9\n"
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."
)


@pytest.mark.parametrize("error", [RuntimeError(GLOO), torch.distributed.DistBackendError(NCCL)])
def test_a_lost_connection_to_another_rank_is_an_error_of_its_own(error: Exception):
    found = BatonError.from_exception(error, "the training script")
    assert found.code == "PEER_LOST"
    assert type(error).__name__ in found.found
    assert "\n" not in found.found


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("Connection reset by peer"),
        RuntimeError("the judge said: Connection reset by peer"),
        torch.distributed.DistBackendError("NCCL error in: NCCLUtils.cpp:77, invalid usage"),
    ],
)
def test_other_connections_and_other_errors_of_collectives_stay_unexpected(error: Exception):
    assert BatonError.from_exception(error, "the training script").code == "UNEXPECTED_ERROR"


def test_rules_are_read():
    assert faults.parse("worker.sync.flip-bit@2, rank.prompts.swap ,a.b@1:x:y") == (
        Fault("worker.sync.flip-bit", 2, ""),
        Fault("rank.prompts.swap", None, ""),
        Fault("a.b", 1, "x:y"),
    )


@pytest.mark.parametrize("text", ["@2", "a.b@", "a.b@0", "a.b@x"])
def test_a_rule_that_makes_no_sense_is_an_error(text):
    with pytest.raises(BatonError) as caught:
        faults.parse(text)
    assert caught.value.code == "BAD_FAULT_RULE"


def test_the_nth_pass_is_a_fault():
    rules = Faults(faults.parse("a@2,b"))
    assert [rules.hit("a") is not None for _ in range(4)] == [False, True, False, False]
    assert [rules.hit("b") is not None for _ in range(2)] == [True, True]
    assert rules.hit("c") is None
