"""What `--model` may name, and which weights that means."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from eval_cases import error_of

from baton.checkpoint_layout import folder_of
from baton.evaluation.model_source import Source, find_source


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def model(folder: Path) -> Path:
    return put(folder, "config.json", "model.safetensors", "tokenizer.json")


def adapter(folder: Path, base: Any, *more: str) -> Path:
    put(folder, "adapter_model.safetensors", *more)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    return folder


def checkpoint(output: Path, step: int, whole: bool = True) -> Path:
    folder = put(folder_of(output, step), "deepspeed/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    model(folder / "model")
    return put(folder, "checkpoint.json") if whole else folder


def age(folder: Path, seconds: int) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (seconds, seconds))


def test_a_model(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    assert find_source(folder, None) == Source("model", folder, None, folder)
    put(tmp_path / "bin", "config.json", "pytorch_model-00001-of-00002.bin")
    assert find_source(tmp_path / "bin", None).kind == "model"


def test_an_adapter(tmp_path: Path) -> None:
    base, other = model(tmp_path / "base"), model(tmp_path / "other")
    bare = adapter(tmp_path / "bare", base)
    assert find_source(bare, None) == Source("adapter", bare, base, base)
    assert find_source(bare, other) == Source("adapter", bare, other, other)
    own = adapter(tmp_path / "own", "somebody/on-the-hub", "tokenizer.json")
    assert find_source(own, base) == Source("adapter", own, base, own)
    assert "somebody/on-the-hub" in error_of(lambda: find_source(own, None), "BASE_NOT_FOUND").found
    (own / "adapter_config.json").write_text("[")
    error_of(lambda: find_source(own, None), "MODEL_NOT_FOUND")


def test_a_checkpoint_of_a_run(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 3)
    inside = folder / "model"
    assert find_source(folder, None) == Source("model", inside, None, inside)
    error_of(lambda: find_source(checkpoint(tmp_path, 4, whole=False), None), "CHECKPOINT_NOT_WHOLE")


def test_what_deepspeed_saved(tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    # As DeepSpeed and transformers' Trainer leave it, and its folder of a step itself.
    theirs = put(tmp_path / "checkpoint-7", "global_step7/zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (theirs / "latest").write_text("global_step7\n")
    assert find_source(theirs, base) == Source("deepspeed", theirs, base, base, "global_step7")
    assert find_source(theirs / "global_step7", base) == Source("deepspeed", theirs, base, base, "global_step7")
    assert "--base" in error_of(lambda: find_source(theirs, None), "BASE_NOT_FOUND").action
    put(theirs, "config.json", "tokenizer.json")
    assert find_source(theirs, None) == Source("deepspeed", theirs, theirs, theirs, "global_step7")


def test_the_newest_of_a_run(tmp_path: Path) -> None:
    for step in (2, 10):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 12, whole=False)
    put(tmp_path, "metrics.jsonl")
    newest = folder_of(tmp_path, 10)
    found = find_source(tmp_path, None)
    assert found.folder == newest / "model"
    assert str(newest) in found.chosen
    final = model(tmp_path / "model")
    age(newest, 1000)
    age(final, 2000)
    assert find_source(tmp_path, None).folder == final
    age(final, 500)  # of an earlier run, which this one goes on from
    assert find_source(tmp_path, None).folder == newest / "model"


def test_the_newest_of_transformers_trainer(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        model(tmp_path / f"checkpoint-{step}")
    assert find_source(tmp_path, None).folder == tmp_path / "checkpoint-100"


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ([], "MODEL_NOT_FOUND"),
        (["notes.txt"], "MODEL_NOT_FOUND"),
        (["config.json", "tokenizer.json"], "MODEL_WITHOUT_WEIGHTS"),
        (["config.json", "adapter_model.safetensors"], "MODEL_WITHOUT_WEIGHTS"),
        (["latest"], "MODEL_NOT_FOUND"),
    ],
)
def test_what_is_no_model(names: list[str], code: str, tmp_path: Path) -> None:
    error_of(lambda: find_source(put(tmp_path / "folder", *names), None), code)
    error_of(lambda: find_source(tmp_path / "nowhere", None), "MODEL_NOT_FOUND")


def test_a_model_beside_checkpoints_is_taken_unless_one_is_younger(tmp_path: Path) -> None:
    root = model(tmp_path)
    older = model(tmp_path / "checkpoint-8")
    age(older, 100)
    assert find_source(root, None) == Source("model", root, None, root)
    age(older, 2**33)
    found = find_source(root, None)
    assert found.folder == older
    assert "the newest in" in found.chosen
