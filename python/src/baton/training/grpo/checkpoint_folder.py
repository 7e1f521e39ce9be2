"""Checkpoints on disk (see `baton.checkpoint_layout`): which is the newest, and whether one belongs to a run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from baton import checkpoint_layout as layout
from baton.checkpoint_layout import DEEPSPEED, DESCRIPTION, MODEL
from baton.errors import BatonError
from baton.training.grpo.data import TokenizedProblem
from baton.training.grpo.options import GrpoOptions
from baton.training.grpo.shape import ModelShape
from baton.weights_digest import weights_digest

__all__ = [
    "DEEPSPEED",
    "DESCRIPTION",
    "MODEL",
    "Found",
    "describe",
    "find",
    "folder_of",
    "identity",
    "prune",
    "rank_file",
]

VERSION = 2


@dataclass(frozen=True)
class Found:
    """`step`: optimizer steps. `batch`, `position`: generated batch, and how many of its micro-batches are used up."""

    folder: Path
    step: int
    batch: int
    position: int


def rank_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.pt"


def folder_of(options: GrpoOptions, step: int) -> Path:
    return layout.folder_of(Path(options.output), step)


def identity(
    options: GrpoOptions, shape: ModelShape, ranks: int, problems: Sequence[TokenizedProblem]
) -> dict[str, Any]:
    """What must be the same for a run to go on from a checkpoint as if it had never stopped: by name."""
    return {
        "ranks": ranks,
        "zero_stage": options.zero_stage,
        "dtype": options.dtype,
        "parameters": f"{shape.elements} elements, {shape.digest}",
        # What a checkpoint does not hold: the base under an adapter, the model that KL is measured from.
        "start": weights_digest(Path(options.model)),
        "lora": None if options.lora is None else json.loads(json.dumps(asdict(options.lora))),
        "prompts": options.prompts,
        "num_generations": options.num_generations,
        "num_iterations": options.num_iterations,
        "micro_batch": options.micro_batch,
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "seed": options.seed,
        # Saved logprobs are at this one.
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "problems": problems_digest(problems),
    }


def problems_digest(problems: Sequence[TokenizedProblem]) -> str:
    """Of prompts as the model sees them, and of all that reward functions are given."""
    found = hashlib.sha256()
    for each in problems:
        found.update(repr((each.prompt_token_ids, sorted(each.problem.columns.items()))).encode())
    return f"{len(problems)} problems, {found.hexdigest()[:16]}"


def find(options: GrpoOptions, whose: Mapping[str, Any]) -> Found | None:
    """The checkpoint that `options.resume` means, if any. Raises BatonError CHECKPOINT_NOT_FOUND, _MISMATCH."""
    if options.resume is None:
        return None
    if options.resume == "auto":
        whole = layout.whole_checkpoints(Path(options.output))
        if not whole:
            return None
        folder = whole[-1]
    else:
        folder = Path(options.resume)
    return _checked(folder, whose)


def _checked(folder: Path, whose: Mapping[str, Any]) -> Found:
    try:
        written = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError) as error:
        raise BatonError(
            "CHECKPOINT_NOT_FOUND",
            f"There is no whole checkpoint in {folder}.",
            expected=f"a folder with {DESCRIPTION}, such as OUTPUT/checkpoints/step-00000010",
            found=f"{type(error).__name__}: {error}",
            action="Correct grpo.resume; with `auto` the newest whole one is taken.",
        ) from error
    theirs: dict[str, Any] = {"format": written.get("format"), **written.get("identity", {})}
    for name, ours in {"format": VERSION, **whose}.items():
        if theirs.get(name) != ours:
            raise BatonError(
                "CHECKPOINT_MISMATCH",
                f"The checkpoint {folder} is of another shape: its {name} is not this run's.",
                expected=f"{name}: {ours}",
                found=f"{name}: {theirs.get(name)}",
                action="Resume with the options that it was made with, or start anew from its folder `model`.",
            )
    return Found(folder, int(written["step"]), int(written["batch"]), int(written["position"]))


def describe(folder: Path, whose: Mapping[str, Any], step: int, batch: int, position: int) -> None:
    """Makes the checkpoint a whole one."""
    values = {"format": VERSION, "step": step, "batch": batch, "position": position, "identity": dict(whose)}
    draft = folder / f"{DESCRIPTION}.part"
    draft.write_text(json.dumps(values, indent=2) + "\n")
    draft.replace(folder / DESCRIPTION)


def set_aside(options: GrpoOptions, after: int) -> None:
    """Renames checkpoints of steps after `after`: they are of another course than the run that begins there now.

    A new run (`after` 0) must neither count an older one's checkpoints as its own nor be resumed from them.
    """
    for folder in (Path(options.output) / layout.FOLDER).glob("step-*"):
        if layout.NAME.fullmatch(folder.name) and layout.step_of(folder) > after:
            number = 1
            while (aside := folder.with_name(f"earlier-{number}-{folder.name}")).exists():
                number += 1
            folder.rename(aside)


def prune(options: GrpoOptions) -> None:
    """Removes the oldest checkpoints beyond `keep_checkpoints`."""
    if options.keep_checkpoints is None:
        return
    for folder in layout.whole_checkpoints(Path(options.output))[: -options.keep_checkpoints]:
        (folder / DESCRIPTION).unlink()  # first of all: half a checkpoint must not look whole
        shutil.rmtree(folder, ignore_errors=True)
