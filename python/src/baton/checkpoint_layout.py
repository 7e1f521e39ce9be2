"""Where a training run keeps its checkpoints, and the parts of one.

OUTPUT/checkpoints/step-00000012/
    checkpoint.json     what it is; written last, so a checkpoint without it is not whole
    deepspeed/          DeepSpeed's: parameters, masters, moments, learning rate
    rank-00000.pt       each rank's place in its generated batch, and that batch
    model/              Hugging Face's: the policy (or its adapter) and the tokenizer
OUTPUT/model/           the same at the end of the run
"""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = "checkpoints"
DESCRIPTION = "checkpoint.json"
DEEPSPEED = "deepspeed"
MODEL = "model"
NAME = re.compile(r"step-(\d{8,})")


def folder_of(output: Path, step: int) -> Path:
    return output / FOLDER / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def whole_checkpoints(output: Path) -> list[Path]:
    """Of a run's folder, from the oldest to the newest."""
    found = (output / FOLDER).glob("step-*")
    return sorted((path for path in found if NAME.fullmatch(path.name) and (path / DESCRIPTION).is_file()), key=step_of)
