"""Qwen- and Llama-shaped models, as a Hugging Face config.json describes them: sizes, and the tensors that follow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.errors import BatonError

#: What the small engine computes.
SUPPORTED = ("qwen2", "llama")
#: Whose tensors follow from their sizes.
LISTED = (*SUPPORTED, "qwen3", "mistral")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of one model, before it is split."""

    model_type: str
    vocabulary_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    #: Queries and keys have norms of their own, one weight for each element of a head.
    head_norms: bool = False

    def checkpoint_tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the tensors that a Hugging Face model of this configuration has."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocabulary_size, hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            for name, rows in (("q", query), ("k", key), ("v", key)):
                yield f"{prefix}.self_attn.{name}_proj.weight", (rows, hidden)
                if self.qkv_bias:
                    yield f"{prefix}.self_attn.{name}_proj.bias", (rows,)
                if self.head_norms and name != "v":
                    yield f"{prefix}.self_attn.{name}_norm.weight", (self.head_dim,)
            yield f"{prefix}.self_attn.o_proj.weight", (hidden, query)
            if self.output_bias:
                yield f"{prefix}.self_attn.o_proj.bias", (hidden,)
            for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
                yield f"{prefix}.mlp.{name}_proj.weight", shape
                if self.mlp_bias:
                    yield f"{prefix}.mlp.{name}_proj.bias", shape[:1]
            yield f"{prefix}.input_layernorm.weight", (hidden,)
            yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield "model.norm.weight", (hidden,)
        if not self.tied_embeddings:
            yield "lm_head.weight", (self.vocabulary_size, hidden)


def read(folder: str | Path) -> ModelConfig:
    """The configuration in `folder`/config.json, for the small engine.

    Raises BatonError MODEL_CONFIG_MISSING or MODEL_UNSUPPORTED.
    """
    return parse(_decoded(folder))


def read_sizes(folder: str | Path) -> ModelConfig:
    """The same for any engine, whatever it does with the tensors: the kind of attention and of positions is not looked
    at. Raises BatonError MODEL_CONFIG_MISSING or MODEL_UNSUPPORTED."""
    return _sizes(_decoded(folder))


def _decoded(folder: str | Path) -> Any:
    path = Path(folder) / "config.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BatonError(
            "MODEL_CONFIG_MISSING",
            f"The model's configuration cannot be read: {error}",
            expected=f"a Hugging Face config.json at {path}",
            found=type(error).__name__,
            action="Give the engine a folder that `save_pretrained` wrote.",
        ) from error


def parse(raw: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a decoded config.json, for the small engine. Raises BatonError MODEL_UNSUPPORTED."""
    model_type = raw.get("model_type")
    if model_type not in SUPPORTED:
        raise _unsupported(f"model_type {model_type!r}", "one of " + ", ".join(SUPPORTED))
    if raw.get("hidden_act", "silu") != "silu":
        raise _unsupported(f"hidden_act {raw['hidden_act']!r}", "silu")
    if raw.get("use_sliding_window") or any(t != "full_attention" for t in raw.get("layer_types") or ()):
        raise _unsupported("sliding-window attention", "full attention in every layer")
    rope = _rope(raw)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise _unsupported(f"rope type {rope_type!r}", "default")
    return _sizes(raw)


def _rope(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    # transformers 5 writes rope_parameters; earlier versions rope_theta and rope_scaling.
    return raw.get("rope_parameters") or {
        "rope_theta": raw.get("rope_theta", 10000.0),
        **(raw.get("rope_scaling") or {}),
    }


def _sizes(raw: Mapping[str, Any]) -> ModelConfig:
    model_type = raw.get("model_type")
    if model_type not in LISTED:
        raise _unsupported(f"model_type {model_type!r}", "one of " + ", ".join(LISTED))
    heads, hidden = int(raw["num_attention_heads"]), int(raw["hidden_size"])
    biased = bool(raw.get("attention_bias", False)) and model_type in ("llama", "qwen3")
    return ModelConfig(
        model_type=model_type,
        vocabulary_size=int(raw["vocab_size"]),
        hidden_size=hidden,
        intermediate_size=int(raw["intermediate_size"]),
        layers=int(raw["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(raw.get("num_key_value_heads") or heads),
        head_dim=int(raw.get("head_dim") or hidden // heads),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=float(_rope(raw).get("rope_theta", raw.get("rope_theta", 10000.0))),
        max_positions=int(raw.get("max_position_embeddings", 2048)),
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=biased or model_type == "qwen2",
        output_bias=biased,
        mlp_bias=bool(raw.get("mlp_bias", False)) and model_type == "llama",
        head_norms=model_type == "qwen3",
    )


def _unsupported(found: str, expected: str) -> BatonError:
    return BatonError(
        "MODEL_UNSUPPORTED",
        f"Baton does not know models with {found}.",
        expected=expected,
        found=found,
        action="Use a Qwen2- or Llama-shaped model, or the vLLM engine.",
    )
