"""What `--model` means: a model, an adapter, a checkpoint of a training run, or the newest one of a run's folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from baton import checkpoint_layout as layout
from baton.errors import BatonError

ADAPTER = "adapter_config.json"
CONFIG = "config.json"
_THEIRS = re.compile(r"checkpoint-(\d+)")  # of transformers' Trainer, and so of TRL
_ZERO = ("*optim_states.pt", "*_zero_*.pt")


@dataclass(frozen=True)
class Source:
    """`folder` has the weights: a whole model; an adapter of `base`; or DeepSpeed's parts, as `tag` in it, of a model
    with the shape of `base`. `tokenizer`: the folder that has it. `chosen`: how it was found, for people; empty where
    it is what was named.
    """

    kind: Literal["model", "adapter", "deepspeed"]
    folder: Path
    base: Path | None
    tokenizer: Path
    tag: str = ""
    chosen: str = ""


def find_source(model: Path, base: Path | None) -> Source:
    """Raises BatonError MODEL_NOT_FOUND, MODEL_WITHOUT_WEIGHTS, CHECKPOINT_NOT_WHOLE or BASE_NOT_FOUND."""
    if not model.is_dir():
        raise _not_found(model, "no such folder")
    found = _source(model, base)
    newest = _newest(model)
    # A script may have saved the model beside its checkpoints, and gone on.
    is_older = found is not None and found.folder == model and newest is not None and _age(newest) > _age(model)
    if found is not None and not is_older:
        return found
    if newest is not None:
        source = find_source(newest, base)
        return replace(source, chosen=f"{newest}, the newest in {model}")
    if (model / CONFIG).is_file():
        raise BatonError(
            "MODEL_WITHOUT_WEIGHTS",
            f"The model in {model} has no weights.",
            expected="*.safetensors, pytorch_model*.bin, or a checkpoint of DeepSpeed",
            found=_names(model),
            action="Download the whole model, not only its configuration.",
        )
    raise _not_found(model, _names(model))


def _source(folder: Path, base: Path | None) -> Source | None:
    """Of the folder itself."""
    if (folder / layout.DEEPSPEED).is_dir() and not (folder / layout.DESCRIPTION).is_file():
        raise BatonError(
            "CHECKPOINT_NOT_WHOLE",
            f"The checkpoint {folder} is not whole.",
            expected=f"{layout.DESCRIPTION}, which is written last",
            found=_names(folder),
            action="The run was ended while it wrote it; take an earlier one.",
        )
    if (folder / layout.DESCRIPTION).is_file():
        inside = _source(folder / layout.MODEL, base)
        return inside or _deepspeed(folder, layout.DEEPSPEED, base)
    if (folder / CONFIG).is_file() and _weights(folder):
        return Source("model", folder, None, folder)
    if (folder / ADAPTER).is_file():
        whose = base or _base_of(folder)
        return Source("adapter", folder, whose, folder if _has_tokenizer(folder) else whose)
    if (folder / "latest").is_file():
        return _deepspeed(folder, (folder / "latest").read_text().strip(), base)
    if any(next(folder.glob(pattern), None) for pattern in _ZERO):
        return _deepspeed(folder.parent, folder.name, base)
    return None


def _deepspeed(root: Path, tag: str, base: Path | None) -> Source | None:
    if not (root / tag).is_dir():
        return None
    shape = base or (root if (root / CONFIG).is_file() else None)
    if shape is None or not (shape / CONFIG).is_file():
        found = f"none in {root}" if shape is None else f"none in {shape}"
        raise _no_base(f"{root / tag} has DeepSpeed's parts of the weights only", "a config.json", found)
    return Source("deepspeed", root, shape, root if _has_tokenizer(root) else shape, tag)


def _base_of(adapter: Path) -> Path:
    try:
        name: Any = json.loads((adapter / ADAPTER).read_text()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise BatonError(
            "MODEL_NOT_FOUND",
            f"The adapter in {adapter} cannot be read.",
            expected=f"peft's {ADAPTER}",
            found=f"{type(error).__name__}: {error}",
            action="Save it again, or take another.",
        ) from error
    if name and (Path(name) / CONFIG).is_file():
        return Path(name)
    raise _no_base(f"{adapter} is an adapter", "the model that it was trained on", f"{name!r} in its {ADAPTER}")


def _newest(output: Path) -> Path | None:
    """Of a run: what it ended with, unless a checkpoint is younger; of a folder of transformers' Trainer the last."""
    ours = layout.whole_checkpoints(output)[-1:]
    final = output / layout.MODEL
    is_there = (final / CONFIG).is_file() or (final / ADAPTER).is_file()
    if is_there and (not ours or _age(final) >= (ours[0] / layout.DESCRIPTION).stat().st_mtime):
        return final
    if ours:
        return ours[0]
    theirs = {int(match[1]): path for path in output.iterdir() if (match := _THEIRS.fullmatch(path.name))}
    return theirs[max(theirs)] if theirs else None


def _age(folder: Path) -> float:
    """When the youngest file of a folder was written."""
    return max((path.stat().st_mtime for path in folder.iterdir() if path.is_file()), default=0.0)


def _weights(folder: Path) -> bool:
    def files() -> Iterator[Path]:
        yield from (path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_"))
        yield from folder.glob("pytorch_model*.bin")

    return any(True for _ in files())


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))


def _names(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:12]) or "an empty folder"


def _no_base(message: str, expected: str, found: str) -> BatonError:
    return BatonError("BASE_NOT_FOUND", f"{message}.", expected, found, "Name the folder of that model with --base.")


def _not_found(folder: Path, found: str) -> BatonError:
    return BatonError(
        "MODEL_NOT_FOUND",
        f"There is no model in {folder}.",
        expected="a model as Hugging Face has it, an adapter of peft, a checkpoint, or the folder of a training run",
        found=found,
        action="Correct --model.",
    )
