"""What of DeepSpeed 0.19 Baton can hand over, and what it refuses by name.

Refused is what keeps state where a pool cannot hold it, and what lets a trainer compute with other weights than those
that it stores (an engine gets the stored ones). accelerate's configuration is looked at before the model is built, the
engine itself when it is attached.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from baton.errors import BatonError
from baton.training.deepspeed_state import innermost_optimizer

#: Keys of `zero_optimization` that mean nothing by themselves, and what they turn on.
_ZERO_PLUS_PLUS = {
    "zero_quantized_weights": "quantized weights (ZeRO++), with which the trainer computes, and the engine does not",
    "zero_quantized_nontrainable_weights": "quantized frozen weights (ZeRO++)",
    "zero_quantized_gradients": "quantized gradients (ZeRO++), which have not been tried",
}


def check_supported(engine: Any) -> None:
    """Whether this engine's state can be handed over. Raises BatonError UNSUPPORTED_DEEPSPEED, WORLD_MISMATCH."""
    if not hasattr(engine, "zero_optimization_stage") or not hasattr(engine, "module"):
        raise _unsupported("the object given is not a DeepSpeed engine", type(engine).__name__, "deepspeed.initialize")
    if getattr(engine, "optimizer", None) is None:
        raise _unsupported("the engine has no optimizer", "none", "an engine that trains")
    check_zero(values_of(engine._config))
    if getattr(engine, "has_moe_layers", False):
        raise _unsupported("the model has DeepSpeed MoE layers", "expert parallelism", "a dense model")
    if not isinstance(innermost_optimizer(engine), torch.optim.Optimizer):
        raise _unsupported(
            "the base optimizer is not a torch.optim.Optimizer",
            type(innermost_optimizer(engine)).__name__,
            "a subclass of it",
        )
    check_world()


def check_accelerate() -> None:
    """accelerate's view of processes and DeepSpeed, if it is in use: before a model is built by it.

    Raises BatonError UNSUPPORTED_DEEPSPEED, WORLD_MISMATCH.
    """
    check_world()
    state = sys.modules.get("accelerate.state")
    if state is None or not state.AcceleratorState._shared_state:
        return
    plugin = state.AcceleratorState._shared_state.get("deepspeed_plugins")
    if plugin is None:
        return
    for each in plugin.values() if isinstance(plugin, dict) else [plugin]:
        zero = (getattr(each, "deepspeed_config", None) or {}).get("zero_optimization", {})
        check_zero(zero.get)


def check_world() -> None:
    """Whether everybody agrees on how many processes train.

    accelerate with DeepSpeed on a machine without GPUs takes each process for the only one unless the backend is named:
    every rank would then train on the same data, and say nothing. Raises BatonError WORLD_MISMATCH.
    """
    if not torch.distributed.is_initialized():
        return
    ranks = torch.distributed.get_world_size()
    state = sys.modules.get("accelerate.state")
    if state is None or "num_processes" not in state.PartialState._shared_state:
        return
    found = int(state.PartialState._shared_state["num_processes"])
    if found != ranks:
        raise BatonError(
            "WORLD_MISMATCH",
            "accelerate and torch.distributed do not agree on how many processes train.",
            expected=f"{ranks} processes, as torch.distributed has",
            found=f"accelerate has {found}",
            action="Without GPUs name the backend: "
            "Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend='gloo')]), "
            "or TrainingArguments(ddp_backend='gloo', use_cpu=True).",
        )


def values_of(config: Any) -> Callable[[str], Any]:
    """What a DeepSpeedConfig says of a key of `zero_optimization`."""
    return lambda name: getattr(config.zero_config, name, None)


def check_zero(value_of: Callable[[str], Any]) -> None:
    """`value_of` gives what `zero_optimization` says of a key, None for nothing. Raises UNSUPPORTED_DEEPSPEED."""
    for what in ("offload_optimizer", "offload_param"):
        config = value_of(what)
        device = config.get("device") if isinstance(config, dict) else getattr(config, "device", None)
        device = str(getattr(device, "value", device))
        if device not in ("none", "None"):
            place = "none: Baton moves the state to the host when the engine needs the GPU, and only then"
            action = f"Set {what}.device to none in the DeepSpeed configuration (accelerate's file: {what}_device)."
            raise _unsupported(f"{what} is configured", f"{what}.device: {device}", place, action)
    if value_of("zenflow") is not None:
        raise _unsupported("ZenFlow keeps optimizer state of its own", "zenflow", "no such section", _remove("zenflow"))
    for name, least in (("zero_hpz_partition_size", 1), ("mics_shard_size", 0)):
        if _number(value_of(name)) > least:
            part = "parameters are partitioned over a part of the ranks"
            kind = "hierarchical partitions of ZeRO++" if name.startswith("zero") else "MiCS"
            raise _unsupported(part, f"{name}: {value_of(name)} ({kind})", "plain ZeRO, over all ranks", _remove(name))
    for name, what in _ZERO_PLUS_PLUS.items():
        if value_of(name) is True:
            raise _unsupported(f"it has {what}", f"{name}: true", "plain ZeRO", _remove(name))


def _remove(name: str) -> str:
    return f"Remove {name} from the DeepSpeed configuration."


def _number(value: Any) -> int:
    return value if isinstance(value, int) else -1  # None, or "auto"


def _unsupported(message: str, found: str, expected: str, action: str | None = None) -> BatonError:
    return BatonError(
        "UNSUPPORTED_DEEPSPEED",
        f"Baton cannot hand over this engine: {message}.",
        expected=expected,
        found=found,
        action=action or "Change the DeepSpeed configuration.",
    )
