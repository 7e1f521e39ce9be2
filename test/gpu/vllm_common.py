"""What the parts of vllm_check.py share: models, results, turns."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from support import GIB, device_bytes_used

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python" / "src"), str(ROOT / "python" / "tests" / "engines")]
os.environ.setdefault("BATON_TEST_SECONDS", "540")
CYCLES = 10
SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
}
BIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
}
CACHE = {"eager": 2 * GIB, "graphs": 2 * GIB, "stock": 2 * GIB, "big": 16 * GIB, "bigstock": 16 * GIB}
PROMPTS = [[(7 * i + 13 * j + 5) % 40000 + 10 for j in range(4 + 5 * i)] for i in range(8)]


class Results:
    """Checks and figures of one part."""

    def __init__(self, folder: Path, part: str) -> None:
        self.path = folder / f"{part}.json"
        self.values: dict[str, Any] = {}
        self.failed: list[str] = []

    def check(self, name: str, holds: bool, found: Any = None) -> None:
        print(f"{'ok  ' if holds else 'FAIL'} {name}" + ("" if found is None else f": {found}"), flush=True)
        if not holds:
            self.failed.append(name)
        self._write()

    def note(self, name: str, value: Any) -> None:
        print(f"     {name}: {value}", flush=True)
        self.values[name] = value
        self._write()

    def _write(self) -> None:
        self.path.write_text(json.dumps({"failed": self.failed, **self.values}, indent=1))


def used_gib() -> float:
    return device_bytes_used() / GIB


@contextlib.contextmanager
def alone(folder: Path, part: str, seconds: float = 150.0) -> Any:
    """One part at a time, when all of them have started or ended."""
    (folder / f"started-{part}").touch()
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        waiting = os.environ["CHECK_PARTS"].split(",")
        if all((folder / f"started-{other}").exists() for other in waiting):
            break
        time.sleep(0.2)
    with (folder / "turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        time.sleep(2.0)  # whoever had the last turn may still be letting go
        yield


def spread(values: list[float]) -> dict[str, float]:
    """Milliseconds: the first, and median and largest of the others."""
    later = sorted(values[1:]) or values
    return {
        "first_ms": round(values[0] * 1e3, 3),
        "p50_ms": round(later[len(later) // 2] * 1e3, 3),
        "max_ms": round(later[-1] * 1e3, 3),
    }


def config_folder(folder: Path, name: str) -> str:
    return str(folder / f"model-{name}")


def load_reference(folder: Path, epoch: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / f"checkpoint-{epoch}", dtype=torch.bfloat16)


def named(model: Any) -> dict[str, Any]:
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


def common(left: list[int], right: list[int]) -> str:
    same = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), len(left))
    return f"{same} of {len(left)}"


def big_tensors() -> dict[str, tuple[int, ...]]:
    from baton.engines import model_config

    return dict(model_config.parse(BIG).checkpoint_tensors())
