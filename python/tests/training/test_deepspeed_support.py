"""What DeepSpeed can be told that Baton refuses, and what it must not refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

from baton.errors import BatonError
from baton.training.deepspeed_support import check_zero, values_of

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"offload_optimizer": {"device": "cpu"}}, "offload_optimizer.device: cpu"),
    ({"offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}, "offload_optimizer.device: nvme"),
    ({"stage": 3, "offload_param": {"device": "cpu"}}, "offload_param.device: cpu"),
    ({"stage": 3, "zero_hpz_partition_size": 8}, "zero_hpz_partition_size: 8 (hierarchical"),
    ({"stage": 3, "zero_quantized_weights": True}, "zero_quantized_weights: true"),
    ({"stage": 3, "zero_quantized_nontrainable_weights": True}, "zero_quantized_nontrainable_weights: true"),
    ({"stage": 3, "zero_quantized_gradients": True}, "zero_quantized_gradients: true"),
    ({"stage": 2, "zenflow": {}}, "zenflow"),
]
ACCEPTED: list[dict[str, Any]] = [
    {},
    {"stage": 2, "overlap_comm": True, "offload_optimizer": {"device": "none"}, "contiguous_gradients": True},
    {"stage": 3, "offload_param": {"device": "none", "pin_memory": True}},
    {"stage": 3, "zero_hpz_partition_size": 1, "zero_quantized_weights": False, "zero_quantized_gradients": False},
]


def of_a_file(section: dict[str, Any]) -> Callable[[str], Any]:
    """As accelerate has it before DeepSpeed reads it."""
    return section.get


def of_deepspeed(section: dict[str, Any]) -> Callable[[str], Any]:
    """As an engine has it."""
    return values_of(DeepSpeedConfig({"train_batch_size": 1, "zero_optimization": section}))


@pytest.mark.parametrize("read", [of_a_file, of_deepspeed])
@pytest.mark.parametrize(("section", "found"), REFUSED)
def test_refused_by_name(section: dict[str, Any], found: str, read: Any) -> None:
    with pytest.raises(BatonError) as caught:
        check_zero(read(section))
    assert caught.value.code == "UNSUPPORTED_DEEPSPEED"
    assert found in caught.value.found


def test_mics_is_refused_by_the_version_that_has_it_and_by_deepspeed_where_it_is_gone() -> None:
    with pytest.raises(BatonError, match="MiCS"):
        check_zero({"stage": 3, "mics_shard_size": 4}.get)
    check_zero({"stage": 3, "mics_shard_size": -1}.get)
    with pytest.raises(DeepSpeedConfigError, match="MiCS"):
        of_deepspeed({"stage": 3, "mics_shard_size": 4})


@pytest.mark.parametrize("read", [of_a_file, of_deepspeed])
@pytest.mark.parametrize("section", ACCEPTED)
def test_accepted(section: dict[str, Any], read: Any) -> None:
    check_zero(read(section))


def test_values_that_accelerate_is_to_fill_in_are_no_reason() -> None:
    section: dict[str, Any] = {"stage": "auto", "zero_hpz_partition_size": "auto"}
    check_zero(section.get)
