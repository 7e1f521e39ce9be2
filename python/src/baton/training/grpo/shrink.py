"""A very small model of the same shape, with random weights: what a dry run trains in place of the real one.

    python -m baton.training.grpo.shrink --config ./my-model --out /tmp/small

Heads, key-value heads, biases, tied embeddings and the base of the rotary embedding stay, so that the model is split
over tensor-parallel workers and ZeRO ranks as the real one is. Its tokenizer has a token for each byte, so that it
takes every text, and a chat template.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.engines import model_config
from baton.errors import BatonError

LAYERS = 2
#: The smallest even one of which rotary embeddings turn more than one pair.
HEAD_DIM = 4
#: Longest sequence: more than a dry run ever makes.
POSITIONS = 512
PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
#: Bytes and the three above, padded as real vocabularies are.
VOCABULARY = 320
#: Logits of random weights differ by about 1, those of the end token by so much: one token in six ends a completion.
END_SCALE = 6.0
SEED = 0

CHAT_TEMPLATE = (
    "{% for message in messages %}" + START + "{{ message['role'] }}\n{{ message['content'] }}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}" + START + "assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Shrunk:
    """What became smaller, as (what, from, to), and what stayed."""

    changes: tuple[tuple[str, Any, Any], ...]
    kept: tuple[str, ...]


def shrink(source: Path, out: Path) -> Shrunk:
    """Writes the small model and its tokenizer to `out`. Reads nothing but config.json of `source`.

    Raises BatonError MODEL_CONFIG_MISSING or MODEL_UNSUPPORTED.
    """
    raw = _read(source)
    smaller, rope = small_config(raw)
    real = model_config.parse({**raw, "rope_scaling": None, "rope_parameters": None, **_base(raw)})
    small = model_config.parse(smaller)
    _save_model(smaller, out)
    byte_tokenizer().save_pretrained(out)
    changes = [
        ("layers", real.layers, small.layers),
        ("head size", real.head_dim, small.head_dim),
        ("hidden size", real.hidden_size, small.hidden_size),
        ("feed-forward size", real.intermediate_size, small.intermediate_size),
        ("vocabulary", real.vocabulary_size, f"{small.vocabulary_size}, a token a byte"),
        ("parameters", _parameters(real), _parameters(small)),
        *([("rotary scaling", rope, "none")] if rope is not None else []),
    ]
    tied = "tied embeddings" if real.tied_embeddings else "embeddings that are not tied"
    return Shrunk(tuple(changes), (f"{real.model_type}, {real.heads} heads, {real.kv_heads} key-value heads, {tied}",))


def small_config(raw: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """config.json of the small model, and the kind of rotary scaling that was left out."""
    heads = int(raw["num_attention_heads"])
    hidden = heads * HEAD_DIM
    base = _base(raw)
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    config = dict(raw)
    for name in ("rope_scaling", "layer_types", "auto_map", "quantization_config", "transformers_version"):
        config.pop(name, None)
    config |= {
        "num_hidden_layers": LAYERS,
        "hidden_size": hidden,
        "head_dim": HEAD_DIM,
        # A multiple of the heads: whatever divides those divides it.
        "intermediate_size": 3 * hidden,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "max_window_layers": LAYERS,
        "rope_parameters": {"rope_type": "default", **base},
        **base,
        # Every matrix then matters to the logits as much as any other, and a mistake in one shows.
        "initializer_range": hidden**-0.5,
        "bos_token_id": None,
        "eos_token_id": _id(END),
        "pad_token_id": _id(PAD),
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }
    return config, None if kind == "default" else kind


def byte_tokenizer() -> Any:
    """A token for each byte of UTF-8, three special ones, a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(_tokens())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _tokens() -> list[str]:
    from tokenizers import pre_tokenizers

    return [PAD, START, END, *sorted(pre_tokenizers.ByteLevel.alphabet())]


def _id(token: str) -> int:
    return (PAD, START, END).index(token)


def _base(raw: Mapping[str, Any]) -> dict[str, float]:
    """The base of the rotary embedding, which transformers 5 writes into a mapping of its own."""
    parameters = raw.get("rope_parameters") or {}
    return {"rope_theta": float(parameters.get("rope_theta", raw.get("rope_theta", 10_000.0)))}


def _parameters(config: model_config.ModelConfig) -> int:
    total = 0
    for _, shape in config.checkpoint_tensors():
        elements = 1
        for size in shape:
            elements *= size
        total += elements
    return total


def _save_model(config: Mapping[str, Any], out: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    torch.manual_seed(SEED)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out))
    with torch.no_grad():
        model.get_output_embeddings().weight[_id(END)] *= END_SCALE
    model.to(torch.bfloat16).save_pretrained(out)


def _read(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    try:
        raw: Any = json.loads(path.read_text())
        heads = int(raw["num_attention_heads"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BatonError(
            "MODEL_CONFIG_MISSING",
            f"The shape of the model cannot be read: {type(error).__name__}: {error}",
            expected=f"a Hugging Face config.json at {path}, with num_attention_heads",
            found=type(error).__name__,
            action="Name the model's folder, or with --config one that has its config.json.",
        ) from error
    if raw.get("model_type") not in model_config.SUPPORTED or heads < 1:
        raise BatonError(
            "MODEL_UNSUPPORTED",
            "A dry run cannot make a small model of this architecture.",
            expected="model_type " + " or ".join(model_config.SUPPORTED),
            found=f"model_type {raw.get('model_type')!r}",
            action="Dry-run the recipe with --config and the shape of such a model (examples/shapes has some).",
        )
    return raw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="folder with the config.json of the real model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the small model")
    given = parser.parse_args()
    shrunk = shrink(given.config, given.out)
    print(json.dumps({"changes": shrunk.changes, "kept": shrunk.kept}))


if __name__ == "__main__":
    main()
