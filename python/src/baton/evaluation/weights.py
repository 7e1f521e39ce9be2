"""An adapter, or DeepSpeed's parts of a checkpoint, as an ordinary model in a folder, which any engine loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from baton.errors import BatonError
from baton.evaluation.model_source import Source


def config_of(source: Source) -> Any:
    """Raises BatonError MODEL_UNSUPPORTED."""
    from transformers import AutoConfig

    folder = source.base or source.folder
    try:
        return AutoConfig.from_pretrained(str(folder))
    except Exception as error:
        raise BatonError(
            "MODEL_UNSUPPORTED",
            f"transformers cannot read the configuration of {folder}.",
            expected="the config.json of a model that the installed transformers knows",
            found=f"{type(error).__name__}: {str(error)[:300]}",
            action="Correct --model, or install a newer transformers.",
        ) from error


def dtype_of(config: Any) -> str:
    """The dtype that the weights were saved in, as far as the configuration says."""
    dtype = getattr(config, "dtype", None)
    return str(dtype).removeprefix("torch.") if dtype is not None else "float32"


def as_model(source: Source, dtype: str, folder: Path) -> Path:
    """The folder of a model with these weights: the source's own, or `folder`, which is written to.

    Weights are put together in float32 on the CPU and rounded once, as a handoff of training does it.
    Raises BatonError MODEL_NOT_LOADED.
    """
    if source.kind == "model":
        return source.folder
    import torch

    try:
        model = _adapted(source, getattr(torch, dtype)) if source.kind == "adapter" else _gathered(source)
    except BatonError:
        raise
    except Exception as error:  # peft, DeepSpeed, torch and safetensors have errors of their own
        raise BatonError(
            "MODEL_NOT_LOADED",
            f"The weights in {source.folder} cannot be put together with {source.base}.",
            expected="the model that they were trained from, and whole files",
            found=f"{type(error).__name__}: {str(error)[:500]}",
            action="Name the right model with --base, or take another checkpoint.",
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    model.to(getattr(torch, dtype)).save_pretrained(str(folder))
    return folder


def _adapted(source: Source, dtype: Any) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    # The base as it was in training, and nothing rounded but the sum.
    base: Any = AutoModelForCausalLM.from_pretrained(str(source.base), dtype=dtype)
    adapted: Any = PeftModel.from_pretrained(base, str(source.folder))
    return adapted.float().merge_and_unload()


def _gathered(source: Source) -> Any:
    import torch
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    from transformers import AutoConfig, AutoModelForCausalLM

    weights: Any = get_fp32_state_dict_from_zero_checkpoint(str(source.folder), tag=source.tag)
    config: Any = AutoConfig.from_pretrained(str(source.base))
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing, unknown = model.load_state_dict(weights, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())
    lacks = [name for name in missing if name not in tied]
    if lacks or unknown:
        raise BatonError(
            "MODEL_NOT_LOADED",
            f"DeepSpeed's checkpoint in {source.folder / source.tag} is of another model than {source.base}.",
            expected="the same parameters",
            found=f"{len(lacks)} are not there ({', '.join(lacks[:3])}), {len(unknown)} are unknown "
            f"({', '.join(unknown[:3])})",
            action="Name the model that was trained with --base; of a run with LoRA take the adapter.",
        )
    model.tie_weights()
    return model
