"""The model of a part, from its config.json; the weights are random."""

from __future__ import annotations

import math

from baton.engines import model_config
from baton.errors import BatonError


def tensors_of(folder: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's parameters, tied ones once."""
    try:
        return dict(model_config.read_sizes(folder).checkpoint_tensors())
    except BatonError:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def elements_of(folder: str) -> int:
    return sum(math.prod(shape) for shape in tensors_of(folder).values())
