"""What vLLM makes of weights once they are loaded: it does so when it starts, and a sync does not do it again.

`process_weights_after_loading` of its layers quantizes weights, brings them into a kernel's order, or computes others
from them (MLA's `W_UV` and `W_UK_T`). A sync writes what `load_weights` writes. An engine that needs more would go on
with wrong weights, and a comparison with `load_weights` would not see it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from baton.errors import BatonError

#: Of vLLM's classes, by name: these leave weights as they are on CUDA.
_AS_LOADED = ("UnquantizedLinearMethod", "UnquantizedEmbeddingMethod")
_EXPERTS = "UnquantizedFusedMoEMethod"
_BACKENDS_AS_LOADED = ("TRITON", "BATCHED_TRITON")
#: Of these each computes what it works with from its weights.
_COMPUTING = ("MLAAttention", "HpcModule")


def require_as_loaded(model: nn.Module) -> None:
    """Raises BatonError WEIGHTS_REARRANGED for a model whose weights are not all used as `load_weights` puts them."""
    found = _rearranged(model)
    if found is None:
        return
    raise BatonError(
        "WEIGHTS_REARRANGED",
        "vLLM rearranges weights of this model after loading them, which a weight sync would not do again.",
        expected="weights that are used as load_weights puts them",
        found=found,
        action="Leave quantization off; for experts set vLLM's `moe_backend: triton`; models with multi-head latent "
        "attention are not supported.",
    )


def _rearranged(model: nn.Module) -> str | None:
    for name, module in model.named_modules():
        if any(known in _names(module) for known in _COMPUTING):
            return f"{name} is of {type(module).__name__}"
        method = getattr(module, "quant_method", None)
        if "QuantizeMethodBase" in _names(method) and (words := _method_in_words(method)):
            return f"{name} is of {words}"
    for name, parameter in model.named_parameters():
        if not parameter.is_contiguous():
            return f"{name} is not contiguous"
    return None


def _method_in_words(method: Any) -> str | None:
    """None for one that leaves weights as they are."""
    kind = type(method).__name__
    if kind in _AS_LOADED:
        return None
    backend = getattr(getattr(method, "unquantized_backend", None), "name", None)
    if kind == _EXPERTS and backend in (None, *_BACKENDS_AS_LOADED):
        return None
    return kind if backend is None else f"{kind} ({backend})"


def _names(value: Any) -> set[str]:
    """Of its classes."""
    return {kind.__name__ for kind in type(value).__mro__}
