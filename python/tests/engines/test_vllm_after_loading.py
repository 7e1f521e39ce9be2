"""Which models vLLM goes on with as `load_weights` left them, by classes with the names of vLLM's."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest
import torch
from torch import nn

from baton.engines.vllm.after_loading import require_as_loaded
from baton.errors import BatonError


class Backend(Enum):
    TRITON = "TRITON"
    FLASHINFER_CUTLASS = "FlashInfer CUTLASS"


class QuantizeMethodBase: ...


def method(name: str, **attributes: Any) -> Any:
    return type(name, (QuantizeMethodBase,), attributes)()


def model(made_by: Any = None, kind: str = "Layer") -> nn.Module:
    layer = type(kind, (nn.Linear,), {})(4, 4)
    layer.quant_method = made_by
    return nn.Sequential(nn.Linear(4, 4), layer)


@pytest.mark.parametrize(
    "made_by",
    [
        None,
        method("UnquantizedLinearMethod"),
        method("UnquantizedEmbeddingMethod"),
        method("UnquantizedFusedMoEMethod"),
        method("UnquantizedFusedMoEMethod", unquantized_backend=Backend.TRITON),
        object(),
    ],
)
def test_as_loaded(made_by: Any) -> None:
    require_as_loaded(model(made_by))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (model(method("Fp8LinearMethod")), "1 is of Fp8LinearMethod"),
        (
            model(method("UnquantizedFusedMoEMethod", unquantized_backend=Backend.FLASHINFER_CUTLASS)),
            "1 is of UnquantizedFusedMoEMethod (FLASHINFER_CUTLASS)",
        ),
        (model(kind="MLAAttention"), "1 is of MLAAttention"),
        (nn.ParameterList([nn.Parameter(torch.zeros(2, 3).t())]), "0 is not contiguous"),
    ],
)
def test_what_a_sync_would_not_do_is_refused_by_name(what: nn.Module, words: str) -> None:
    with pytest.raises(BatonError) as raised:
        require_as_loaded(what)
    assert raised.value.code == "WEIGHTS_REARRANGED"
    assert raised.value.found == words
