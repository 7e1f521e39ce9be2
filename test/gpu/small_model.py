"""A model that every tensor-parallel size divides, for checks that need none that can speak."""

from __future__ import annotations

import json
from pathlib import Path

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "attention_dropout": 0,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
SIZES = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "vocab_size": 32_000}
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 8}
#: For stand-in GPUs.
TINY_SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
TINY_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 8}


def write_config(folder: Path, simulated: bool) -> Path:
    """A folder with config.json; the weights come from the trainer."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {**TINY_SIZES, **TINY_HEADS} if simulated else {**SIZES, **HEADS}
    (folder / "config.json").write_text(json.dumps({**CONFIG, **sizes}, indent=1))
    return folder


def write_checkpoint(folder: Path, simulated: bool) -> Path:
    """The same with random weights that all matter: norms that are not ones, matrices that keep the size of what goes
    through them. With transformers' own initial values attention and MLP add next to nothing, and nobody would notice
    two that are swapped."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    write_config(folder, simulated)
    config = (folder / "config.json").read_text()
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            random = torch.randn_like(parameter)
            if parameter.dim() == 1:
                parameter.add_(random * 0.1)
            else:
                parameter.copy_(random if "embed" in name else random / parameter.shape[1] ** 0.5)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(config)
    return folder
