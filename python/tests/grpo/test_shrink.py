"""The small model of a dry run: split as the real one is, readable by all that read models, any text encodable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import error_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from baton.engines import model_config
from baton.engines.small.shard import Shard
from baton.training.grpo.shrink import END, PAD, shrink, small_config

SHAPES = Path(__file__).parents[3] / "examples/shapes"
NAMES = sorted(path.name for path in SHAPES.iterdir())


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("small")
    shrink(SHAPES / request.param, out)
    return SHAPES / request.param, out


def test_what_decides_how_a_model_is_split_stays(pair: tuple[Path, Path]) -> None:
    real, small = (model_config.read(folder) for folder in pair)
    for same in ("model_type", "heads", "kv_heads", "tied_embeddings", "qkv_bias", "output_bias", "mlp_bias"):
        assert getattr(small, same) == getattr(real, same), same
    assert (small.rope_theta, small.rms_norm_eps) == (real.rope_theta, real.rms_norm_eps)
    assert small.hidden_size == small.heads * small.head_dim
    sizes = [small.hidden_size, small.intermediate_size, small.vocabulary_size, small.max_positions]
    assert len(set(sizes)) == len(sizes)  # a matrix the wrong way round does not fit


def test_every_number_of_workers_that_splits_the_real_one_splits_it(pair: tuple[Path, Path]) -> None:
    real, small = (model_config.read(folder) for folder in pair)
    possible = [size for size in (1, 2, 3, 4, 5, 7, 8, 9) if _splits(real, size)]
    assert possible[:1] == [1]
    assert len(possible) > 1
    assert [size for size in possible if not _splits(small, size)] == []


def _splits(config: model_config.ModelConfig, size: int) -> bool:
    if config.heads % size or config.intermediate_size % size:
        return False
    if config.kv_heads % size and size % config.kv_heads:
        return False
    Shard.of(config, 0, size)
    return True


def test_four_workers_split_the_qwens(tmp_path: Path) -> None:
    for name in ("qwen2.5-7b", "qwen2.5-14b"):
        shrink(SHAPES / name, tmp_path / name)
        assert Shard.of(model_config.read(tmp_path / name), 0, 4).heads == {"qwen2.5-7b": 7, "qwen2.5-14b": 10}[name]


def test_transformers_and_the_engine_read_the_same_tensors(pair: tuple[Path, Path]) -> None:
    _, out = pair
    model: Any = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    expected = dict(model_config.read(out).checkpoint_tensors())
    found = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert found == expected
    assert sum(tensor.numel() for tensor in model.parameters()) < 1_000_000


def test_random_weights_matter_and_some_completions_end(pair: tuple[Path, Path]) -> None:
    _, out = pair
    model: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    torch.manual_seed(0)
    ids = torch.randint(3, 250, (64, 24))
    with torch.no_grad():
        logits = model(ids).logits
        ends = logits.softmax(-1)[..., tokenizer.eos_token_id].mean()
        # The first layer is not lost in what the embedding adds to every layer.
        model.model.layers[0].mlp.down_proj.weight.zero_()
        assert (model(ids).logits - logits).abs().mean() > 0.05
    assert 0.03 < ends < 0.5
    assert AutoConfig.from_pretrained(out).eos_token_id == tokenizer.eos_token_id


def test_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shrink(SHAPES / "smollm2-135m", tmp_path / name)
    one, other = (((tmp_path / name) / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert one == other


@pytest.mark.parametrize("text", ["37+48=", "Wie groß ist ∑ₙ 1/n²? 你好 🎉", "\x00\t\r\n \\boxed{}", ""])
def test_any_text_is_bytes_and_comes_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    out = tmp_path_factory.mktemp("tokenizer")
    shrink(SHAPES / "smollm2-135m", out)
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert max(ids, default=0) < model_config.read(out).vocabulary_size


def test_a_chat_ends_where_an_answer_begins(tmp_path: Path) -> None:
    shrink(SHAPES / "smollm2-135m", tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("1+1?<|im_end|>\n<|im_start|>assistant\n")
    begun = [*messages, {"role": "assistant", "content": "It is"}]
    text = tokenizer.apply_chat_template(begun, tokenize=False, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nIt is")
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(num_attention_heads=8, num_key_value_heads=2, hidden_size=64, attention_bias=True, mlp_bias=True),
        Qwen2Config(num_attention_heads=6, num_key_value_heads=6, hidden_size=96, tie_word_embeddings=True),
    ],
    ids=["llama with biases", "qwen2 of transformers 5"],
)
def test_configs_as_transformers_writes_them(tmp_path: Path, config: Any) -> None:
    config.save_pretrained(tmp_path / "real")
    shrink(tmp_path / "real", tmp_path / "small")
    real, small = (model_config.read(tmp_path / name) for name in ("real", "small"))
    assert (small.qkv_bias, small.mlp_bias, small.tied_embeddings) == (
        real.qkv_bias,
        real.mlp_bias,
        real.tied_embeddings,
    )
    AutoModelForCausalLM.from_pretrained(tmp_path / "small")


def test_rotary_scaling_is_left_out_and_named() -> None:
    raw = json.loads((SHAPES / "smollm2-135m/config.json").read_text())
    assert small_config(raw)[1] is None
    scaled, kind = small_config({**raw, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}})
    assert kind == "llama3"
    assert model_config.parse(scaled).rope_theta == 100_000
    modern = {**raw, "rope_theta": None, "rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 2}}
    scaled, kind = small_config(modern)
    assert (kind, model_config.parse(scaled).rope_theta) == ("yarn", 500_000)


def test_what_cannot_be_made_small_is_refused(tmp_path: Path) -> None:
    error_of(lambda: shrink(tmp_path, tmp_path / "out"), "MODEL_CONFIG_MISSING")
    (tmp_path / "config.json").write_text("[]")
    error_of(lambda: shrink(tmp_path, tmp_path / "out"), "MODEL_CONFIG_MISSING")
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "num_attention_heads": 4}')
    assert "mamba" in error_of(lambda: shrink(tmp_path, tmp_path / "out"), "MODEL_UNSUPPORTED").found
    assert not (tmp_path / "out").exists()
