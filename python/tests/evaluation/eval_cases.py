"""Data, models and errors of these tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

import baton.examples
from baton.errors import BatonError
from baton.evaluation.options import EvalOptions

TINY = Path(baton.examples.__file__).parent / "tiny_model"


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def options(folder: Path, **changes: Any) -> EvalOptions:
    values: dict[str, Any] = {"model": str(TINY), "data": str(folder / "data.jsonl"), "out": str(folder / "out")}
    return EvalOptions(**values | changes)


def error_of(call: Callable[[], Any], code: str) -> BatonError:
    with pytest.raises(BatonError) as caught:
        call()
    assert caught.value.code == code, str(caught.value)
    assert all(caught.value.to_wire().values())
    return caught.value


def make_model(folder: Path, seed: int = 5, **changes: Any) -> Path:
    """A random model with the shipped tokenizer."""
    sizes: dict[str, Any] = {
        "vocab_size": 16,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "eos_token_id": 1,
    }
    torch.manual_seed(seed)
    Qwen2ForCausalLM(Qwen2Config(**sizes | changes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder
