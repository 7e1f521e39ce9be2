"""A Qwen2- or Llama-shaped decoder, split over a tensor-parallel group; weights by Hugging Face names.

Numbers are rounded where Hugging Face's models round them, so that trainer and engine agree on logprobs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from baton.engines.model_config import ModelConfig
from baton.engines.small.cache import Cache
from baton.engines.small.group import Group
from baton.engines.small.layers import FusedColumns, RMSNorm, RowParallel, Storage, VocabularyParallel
from baton.engines.small.shard import Shard
from baton.errors import BatonError
from baton.weights.names import nearest


@dataclass
class Batch:
    """One forward pass: `rows` sequences with `width` new tokens each, right-padded.

    A prefill has width > 1 and starts at position 0; a decoding step has width 1 and reads the cache.
    """

    tokens: Tensor  # int64 [rows, width]
    positions: Tensor  # int64 [rows, width]
    #: Decoding: the cache slot of each row. None: a prefill, which returns its keys and values instead.
    slots: Tensor | None
    #: Decoding: cached positions that the longest row looks at, this one included.
    reach: int = 0
    #: Prefill: keys and values by layer, each [rows, kv heads, width, head dim].
    filled: list[tuple[Tensor, Tensor]] | None = None


class Rotary:
    """Rotary position embedding of the default type. Its tables are in ordinary memory: sleep must not lose them."""

    def __init__(self, head_dim: int, theta: float, positions: int, dtype: torch.dtype) -> None:
        inverse = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
        angles = torch.outer(torch.arange(positions).float(), inverse)
        angles = torch.cat((angles, angles), dim=-1)
        self.cos = angles.cos().to(dtype)
        self.sin = angles.sin().to(dtype)

    def __call__(self, heads: Tensor, positions: Tensor) -> Tensor:
        """`heads` [rows, heads, width, head dim] turned by `positions` [rows, width]."""
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        left, right = heads.chunk(2, dim=-1)
        return heads * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, shard: Shard, storage: Storage, group: Group) -> None:
        super().__init__()
        self.shard = shard
        self.head_dim = config.head_dim
        query, key = shard.heads * config.head_dim, shard.kv_heads * config.head_dim
        self.qkv_proj = FusedColumns(storage, config.hidden_size, (query, key, key), config.qkv_bias)
        self.o_proj = RowParallel(storage, query, config.hidden_size, config.output_bias, group)

    def forward(self, hidden: Tensor, batch: Batch, rotary: Rotary, cache: Cache, layer: int) -> Tensor:
        rows, width, _ = hidden.shape
        query, key, value = (
            part.view(rows, width, -1, self.head_dim).transpose(1, 2) for part in self.qkv_proj(hidden)
        )
        query, key = rotary(query, batch.positions), rotary(key, batch.positions)
        if batch.slots is None:
            assert batch.filled is not None
            batch.filled.append((key, value))
            mixed = self._prefill(query, key, value)
        else:
            mixed = self._decode(query, key, value, batch, cache, layer)
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, width, -1))

    def _prefill(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # Right padding needs no mask of its own: a real token never looks at one that comes later.
        share = self.shard.heads // self.shard.kv_heads
        key, value = (kv.repeat_interleave(share, dim=1) if share > 1 else kv for kv in (key, value))
        return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)

    def _decode(self, query: Tensor, key: Tensor, value: Tensor, batch: Batch, cache: Cache, layer: int) -> Tensor:
        assert batch.slots is not None
        keys, values = cache.keys[layer], cache.values[layer]
        at = batch.positions[:, 0]
        keys[batch.slots, :, at] = key[:, :, 0]
        values[batch.slots, :, at] = value[:, :, 0]
        keys, values = (kv[:, :, : batch.reach].index_select(0, batch.slots) for kv in (keys, values))
        mask = torch.arange(batch.reach) <= batch.positions
        # The query heads that share a KV head are laid out as if they were positions: no key is repeated.
        rows, heads = query.shape[:2]
        grouped = query.view(rows, self.shard.kv_heads, heads // self.shard.kv_heads, self.head_dim)
        mixed = nn.functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask[:, None, None, :])
        return mixed.reshape(rows, heads, 1, self.head_dim)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig, shard: Shard, storage: Storage, group: Group) -> None:
        super().__init__()
        inner = shard.intermediate_size
        self.gate_up_proj = FusedColumns(storage, config.hidden_size, (inner, inner), config.mlp_bias)
        self.down_proj = RowParallel(storage, inner, config.hidden_size, config.mlp_bias, group)

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(hidden)
        return self.down_proj(nn.functional.silu(gate) * up)


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, shard: Shard, storage: Storage, group: Group) -> None:
        super().__init__()
        self.self_attn = Attention(config, shard, storage, group)
        self.mlp = MLP(config, shard, storage, group)
        self.input_layernorm = RMSNorm(storage, config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(storage, config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """The model without its head, so that parameters are called `model.…` as in a checkpoint."""

    def __init__(self, config: ModelConfig, shard: Shard, storage: Storage, group: Group) -> None:
        super().__init__()
        self.embed_tokens = VocabularyParallel(storage, shard, config.vocabulary_size, config.hidden_size, group)
        self.layers = nn.ModuleList(Layer(config, shard, storage, group) for _ in range(config.layers))
        self.norm = RMSNorm(storage, config.hidden_size, config.rms_norm_eps)


class CausalModel(nn.Module):
    """One worker's part of the model. Every worker calls `forward` with the same batch."""

    def __init__(
        self, config: ModelConfig, shard: Shard, storage: Storage, group: Group, dtype: torch.dtype, length: int
    ) -> None:
        """`length`: the longest sequence that will be generated."""
        super().__init__()
        self.config = config
        self.shard = shard
        self._checkpoint = dict(config.checkpoint_tensors())
        self.model = Decoder(config, shard, storage, group)
        self.lm_head = (
            self.model.embed_tokens
            if config.tied_embeddings
            else VocabularyParallel(storage, shard, config.vocabulary_size, config.hidden_size, group)
        )
        self.rotary = Rotary(config.head_dim, config.rope_theta, length, dtype)

    def forward(self, batch: Batch, cache: Cache, last: Tensor) -> Tensor:
        """Logits (float32 [rows, vocabulary]) at index `last` (int64 [rows]) of each row."""
        hidden = self.model.embed_tokens(batch.tokens)
        for number, layer in enumerate(self.model.layers):
            assert isinstance(layer, Layer)
            hidden = hidden + layer.self_attn(layer.input_layernorm(hidden), batch, self.rotary, cache, number)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        hidden = hidden[torch.arange(hidden.shape[0]), last]
        return self.lm_head.logits(self.model.norm(hidden))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Copies this worker's slices of whole tensors with Hugging Face names into place.

        Returns the names of the parameters that got something. Raises BatonError UNKNOWN_WEIGHT.
        """
        loaded: set[str] = set()
        with torch.no_grad():
            for name, source in weights:
                if name == "lm_head.weight" and self.config.tied_embeddings:
                    continue
                loaded.add(self._load(name, source))
        return loaded

    #: Checkpoint name -> (name of the fused layer, its part).
    _FUSED: ClassVar[dict[str, tuple[str, int]]] = {
        "q_proj": ("qkv_proj", 0),
        "k_proj": ("qkv_proj", 1),
        "v_proj": ("qkv_proj", 2),
        "gate_proj": ("gate_up_proj", 0),
        "up_proj": ("gate_up_proj", 1),
    }

    def _load(self, name: str, source: Tensor) -> str:
        expected = self._checkpoint.get(name)
        if expected != tuple(source.shape):
            raise BatonError(
                "UNKNOWN_WEIGHT",
                f"The engine's model has no place for the trainer's tensor {name!r} of shape {list(source.shape)}.",
                expected=f"shape {list(expected)}" if expected else "a tensor that the model's config.json implies",
                found=f"{name} {list(source.shape)}; {nearest(name, self._checkpoint, 'the names that it knows')}",
                action="Give engine and trainer the same model folder.",
            )
        path, _, kind = name.rpartition(".")
        parent, _, leaf = path.rpartition(".")
        fused, part = self._FUSED.get(leaf, (leaf, -1))
        path = f"{parent}.{fused}" if parent else fused
        layer = self.get_submodule(path)
        target = layer.get_parameter(kind)
        if isinstance(layer, FusedColumns):
            # Ranks that share KV heads load the same slice.
            shared = fused == "qkv_proj" and part > 0
            layer.load(target, source, part, self.shard.rank // (self.shard.kv_replicas if shared else 1))
        else:
            assert isinstance(layer, RowParallel | VocabularyParallel | RMSNorm)
            layer.load(target, source)
        return f"{path}.{kind}"
