"""LoRA adapters of peft: which weights they change, and under which names an engine knows those.

An engine of a run with adapters has plain weights: those of the base, with the adapters' product added to the layers
that have any (see `merging`). It knows nothing of peft's names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from baton.errors import BatonError

#: What wrappers of modules (torch.compile, activation checkpointing) put into parameter names.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")
_PEFT_ROOT = "base_model.model."
_SAVED_MODULE = re.compile(r"\.modules_to_save\.[^.]+\.")


@dataclass(frozen=True)
class Weight:
    """A tensor that the engine needs. `layer`: peft's layer when adapters change it, else None."""

    name: str
    parameter: Any
    layer: Any | None = None


def engine_weights(module: Any) -> Iterator[Weight]:
    """The policy's weights under the names that the engine's load_weights knows; tied ones once.

    Raises BatonError UNSUPPORTED_WEIGHTS or UNSUPPORTED_ADAPTER.
    """
    layers = _adapted_layers(module)
    for name, parameter in module.named_parameters():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        if layers is None:
            yield Weight(name, parameter)
            continue
        if ".lora_" in name or ".original_module." in name:
            continue  # merged into another; or replaced by a trained copy of the whole module
        known = _SAVED_MODULE.sub(".", name.removeprefix(_PEFT_ROOT)).replace(".base_layer.", ".")
        yield Weight(known, parameter, layers.get(id(parameter)))


def plain_model(module: Any) -> Any:
    """The transformers model inside of peft's and torch.compile's wrappers."""
    module = getattr(module, "_orig_mod", module)
    return module.get_base_model() if has_adapters(module) else module


def has_adapters(module: Any) -> bool:
    """Whether the module is one of peft's."""
    return hasattr(module, "peft_config") and hasattr(module, "base_model")


def _adapted_layers(module: Any) -> dict[int, Any] | None:
    """peft's layers by the id of the weight that they change; None for a module without adapters."""
    if not has_adapters(module):
        _refuse_bare_adapters(module)
        return None
    from peft import PeftType
    from peft.tuners.lora import LoraLayer

    kinds = {str(getattr(config.peft_type, "value", config.peft_type)) for config in module.peft_config.values()}
    if kinds != {PeftType.LORA.value}:
        raise unsupported_adapter(f"adapters of the kind {', '.join(sorted(kinds))}", "LoRA")
    found: dict[int, Any] = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        _check_layer(name.removeprefix(_PEFT_ROOT), layer)
        found[id(layer.get_base_layer().weight)] = layer
    _check_tied(module, found)
    return found


def _refuse_bare_adapters(module: Any) -> None:
    """Adapters that were put into a module without peft's wrapper, or by another library."""
    for name, _ in module.named_parameters():
        if ".lora_" in name or ".base_layer." in name:
            raise unsupported_adapter(f"{name}, an adapter in a module without peft's wrapper", "peft.get_peft_model")


def _check_layer(name: str, layer: Any) -> None:
    """Raises UNSUPPORTED_ADAPTER for what is more than W + scale * B A of a matrix of ordinary numbers."""
    base = layer.get_base_layer()
    weight = getattr(base, "weight", None)
    if hasattr(weight, "quant_state") or (weight is not None and not weight.is_floating_point()):
        raise unsupported_adapter(f"{name} has a quantized base ({type(weight).__name__})", "a base in bf16 or fp32")
    if (
        weight is None
        or type(base).__name__ not in ("Linear", "LinearLayer")
        or getattr(layer, "fan_in_fan_out", False)
    ):
        raise unsupported_adapter(f"{name} adapts a {type(base).__name__}", "adapters of torch.nn.Linear only")
    for adapter in layer.active_adapters:
        if layer.lora_variant.get(adapter) is not None or layer.use_dora.get(adapter):
            raise unsupported_adapter(f"{name} has a variant of LoRA (DoRA and the like)", "plain LoRA or rsLoRA")
        if layer.lora_bias.get(adapter):
            raise unsupported_adapter(f"{name} has a bias of its own (lora_bias)", "adapters without bias")


def _check_tied(module: Any, layers: dict[int, Any]) -> None:
    """A weight that two layers share would be merged for one of them and not for the other."""
    if not layers:
        raise unsupported_adapter("no adapted layer at all", "target_modules that name layers of the model")
    names: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in layers and id(parameter) in names:
            raise unsupported_adapter(
                f"{names[id(parameter)]} and {name} are one tied weight, and only one of them is adapted",
                "adapters of weights that are not tied",
            )
        names[id(parameter)] = name


def check_active(layer: Any) -> None:
    """Before weights are handed over: a policy whose adapters are off, or merged in, is not what is trained.

    Raises BatonError ADAPTER_OFF.
    """
    found = "they are merged into the base" if layer.merged else "they are off" if layer.disable_adapters else None
    if found is not None or not layer.active_adapters:
        raise BatonError(
            "ADAPTER_OFF",
            "The policy's adapters do not take part, so that the engine would sample from the base weights.",
            expected="active adapters that are not merged, at every rollout",
            found=found or "no adapter is active",
            action="Leave `disable_adapter()` before the rollout, and do not call merge_adapter().",
        )


def unsupported_adapter(found: str, expected: str) -> BatonError:
    return BatonError(
        "UNSUPPORTED_ADAPTER",
        f"The policy's adapters cannot be given to an engine: {found}.",
        expected=expected,
        found=found,
        action="Change the adapter's configuration, or load the base model unquantized.",
    )
