"""The same model in transformers, as the trainer would have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

VOCABULARY = 100


def make(kind: str, dtype: str, *, tied: bool, kv_heads: int, seed: int = 0) -> Any:
    """A small random model. Its logits differ enough between tokens that a wrong weight shows."""
    torch.manual_seed(seed)
    classes: dict[str, tuple[Any, Any]] = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }
    config_class, model_class = classes[kind]
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=kv_heads,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.08,
        rope_parameters={"rope_theta": 5000.0, "rope_type": "default"},
        bos_token_id=None,
        eos_token_id=None,
    )
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # zeros and ones would hide a missing one
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(getattr(torch, dtype)).eval()


def tensors(model: Any) -> dict[str, torch.Tensor]:
    """As the ranks' manifests name them: tied tensors once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def save_config(model: Any, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def logprobs(model: Any, prompt: list[int], completion: list[int], temperature: float) -> np.ndarray:
    """Of each token of the completion, at `temperature`, from one forward pass without a cache."""
    ids = torch.tensor([prompt + completion])
    rows = torch.log_softmax(model(ids).logits[0].float() / temperature, -1)
    return rows[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()
