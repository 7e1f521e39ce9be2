"""The tiny models and data of TRL's own tests, made here: machines without a network cannot fetch them.

They have the names, layouts and kinds of those on the hub (`trl-internal-testing`), with random weights and a
tokenizer of bytes and pairs of letters. `from_pretrained` and `load_dataset` find them in the current folder.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import json
import string
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

OWNER = "trl-internal-testing"
MODELS: dict[str, tuple[Any, Any]] = {
    "tiny-Qwen2ForCausalLM-2.5": (Qwen2ForCausalLM, Qwen2Config),
    "tiny-Qwen2ForSequenceClassification-2.5": (Qwen2ForSequenceClassification, Qwen2Config),
    "tiny-Qwen3ForCausalLM": (Qwen3ForCausalLM, Qwen3Config),
    "tiny-Qwen3ForSequenceClassification": (Qwen3ForSequenceClassification, Qwen3Config),
    "tiny-LlamaForSequenceClassification-3.2": (LlamaForSequenceClassification, LlamaConfig),
}
#: How many words of each line of the Zen of Python a prompt is.
WORDS = (4, 2, 3, 1, 4, 3, 1, 4, 3, 3, 2, 6, 6, 11, 2, 4, 7, 5, 5)
TEST_ROWS = 2


def prompts() -> list[str]:
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    lines = codecs.decode(this.s, "rot13").splitlines()[2:]
    return [" ".join(line.split()[:words]) for line, words in zip(lines, WORDS, strict=True)]


def tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    # With so many tokens random completions seldom end by chance, and all of them are text.
    pairs = list(itertools.product(string.ascii_letters, repeat=2))
    vocabulary = [*symbols, *("".join(pair) for pair in pairs)]
    found = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(vocabulary)}, merges=pairs))
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
        "max_position_embeddings": 2048,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    torch.manual_seed(0)
    for name, (kind, config) in MODELS.items():
        # With a classification head of one label; a language model takes no notice.
        kind(config(**sizes, num_labels=1)).save_pretrained(folder / OWNER / name)
        words.save_pretrained(folder / OWNER / name)
    zen = folder / OWNER / "zen"
    configs = []
    for name, row in (
        ("standard_prompt_only", lambda text: {"prompt": text}),
        ("conversational_prompt_only", lambda text: {"prompt": [{"role": "user", "content": text}]}),
    ):
        entries = []
        for split, some in (("train", prompts()[:-TEST_ROWS]), ("test", prompts()[-TEST_ROWS:])):
            path = zen / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row(text)) + "\n" for text in some))
            entries.append(f"  - split: {split}\n    path: {name}/{split}.jsonl\n")
        configs.append(f"- config_name: {name}\n  data_files:\n{''.join(entries)}")
    (zen / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    (folder / "made").touch()
    return folder
