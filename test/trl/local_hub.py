"""The tiny models and data of TRL's own tests, made here: machines without a network cannot fetch them.

They have the names, layouts and kinds of those on the hub (`trl-internal-testing`), with random weights and a
tokenizer of bytes. `from_pretrained` and `load_dataset` find them in the current folder.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

OWNER = "trl-internal-testing"
POLICY = f"{OWNER}/tiny-Qwen2ForCausalLM-2.5"
REWARD = f"{OWNER}/tiny-Qwen2ForSequenceClassification-2.5"
SENTENCES = (
    "Beautiful is better than",
    "Explicit is",
    "Simple is better",
    "Complex",
    "Flat is better than",
    "Sparse is better",
    "Readability",
    "Special cases aren't special",
    "Errors should never",
    "In the face of ambiguity,",
    "There should be",
    "Now is better",
    "If the implementation is hard to",
    "Namespaces are",
    "Although practicality",
    "Unless",
    "Although that way",
)


def tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    found = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([AddedToken(text, special=True) for text in special])
    template = files("trl").joinpath("chat_templates/qwen2_5.jinja").read_text()
    return PreTrainedTokenizerFast(
        tokenizer_object=found, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template
    )


def make(folder: Path) -> Path:
    """The tree of models and data, made once in `folder`."""
    if (folder / "made").exists():
        return folder
    words = tokenizer()
    sizes: dict[str, Any] = {
        "vocab_size": len(words),
        "hidden_size": 8,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    torch.manual_seed(0)
    for name, model in (
        (POLICY, Qwen2ForCausalLM(Qwen2Config(**sizes))),
        (REWARD, Qwen2ForSequenceClassification(Qwen2Config(**sizes, num_labels=1))),
    ):
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    zen = folder / OWNER / "zen"
    configs = []
    for name, row in (
        ("standard_prompt_only", lambda text: {"prompt": text}),
        ("conversational_prompt_only", lambda text: {"prompt": [{"role": "user", "content": text}]}),
    ):
        entries = []
        for split, some in (("train", SENTENCES), ("test", SENTENCES[:2])):
            path = zen / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row(text)) + "\n" for text in some))
            entries.append(f"  - split: {split}\n    path: {name}/{split}.jsonl\n")
        configs.append(f"- config_name: {name}\n  data_files:\n{''.join(entries)}")
    (zen / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    (folder / "made").touch()
    return folder
