"""The tensors that follow from a config.json are those of the Hugging Face model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from baton.engines import model_config
from baton.errors import BatonError

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 32}),
        ("qwen3", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
        ("llama", {"rope_parameters": LLAMA_3}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"sliding_window": 16}),
    ],
)
def test_names_and_shapes_are_the_models(tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    AutoConfig.for_model(kind, **SIZES, **more).save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert dict(model_config.read_sizes(tmp_path).checkpoint_tensors()) == wanted


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ({"model_type": "qwen3"}, "qwen3"),
        ({"model_type": "llama", "rope_parameters": LLAMA_3}, "llama3"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "sliding-window"),
    ],
)
def test_the_small_engine_computes_less_than_is_listed(tmp_path: Path, raw: dict[str, Any], found: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES | raw))
    assert model_config.read_sizes(tmp_path).layers == 2
    with pytest.raises(BatonError, match=found) as error:
        model_config.read(tmp_path)
    assert error.value.code == "MODEL_UNSUPPORTED"


def test_tensors_of_other_models_are_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"model_type": "qwen3_moe"}))
    with pytest.raises(BatonError, match="qwen3_moe"):
        model_config.read_sizes(tmp_path)
