"""The shape of a model, from its folder and without its weights: what can be checked before anything is loaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.errors import BatonError
from baton.training.grpo.options import GrpoOptions
from baton.weights_digest import WEIGHTS


@dataclass(frozen=True)
class ModelShape:
    """`digest`: of the names and shapes of all parameters. `positions`: most tokens; None: the config does not say."""

    elements: int
    hidden_size: int
    positions: int | None
    digest: str


def model_shape(options: GrpoOptions) -> ModelShape:
    """Of the policy in `options.model`, with its adapters. Raises BatonError as `check_model` and `adapted` do."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    check_model(Path(options.model))
    config: Any = AutoConfig.from_pretrained(options.model)
    if getattr(config, "quantization_config", None) is not None:
        raise BatonError(
            "UNSUPPORTED_ADAPTER" if options.lora else "UNSUPPORTED_WEIGHTS",
            "The policy's weights are quantized, and an engine could not be given them.",
            expected="a model in bfloat16 or float32 (QLoRA is not supported: merging rounds to 4 bits and back)",
            found=f"quantization_config in {options.model}/config.json",
            action="Use the model that this one was quantized from, with LoRA where memory is short.",
        )
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
        if options.lora is not None:
            model = adapted(model, options)
    described = hashlib.sha256()
    for name, parameter in model.named_parameters():
        described.update(f"{name} {list(parameter.shape)}\n".encode())
    text: Any = config.get_text_config()
    return ModelShape(
        elements=sum(parameter.numel() for parameter in model.parameters()),
        hidden_size=int(text.hidden_size),
        positions=getattr(text, "max_position_embeddings", None),
        digest=described.hexdigest()[:16],
    )


def check_model(folder: Path) -> None:
    """Whether there is a model with weights to start from. Raises BatonError MODEL_NOT_FOUND, MODEL_WITHOUT_WEIGHTS."""
    if not (folder / "config.json").is_file():
        raise BatonError(
            "MODEL_NOT_FOUND",
            f"There is no model in {folder}.",
            expected="a folder with config.json, weights and tokenizer, in the layout of Hugging Face",
            found="no config.json" if folder.is_dir() else "no such folder",
            action="Download the model, and put its folder into engine.model.",
        )
    if not any(found for pattern in WEIGHTS for found in folder.glob(pattern)):
        raise BatonError(
            "MODEL_WITHOUT_WEIGHTS",
            f"The model in {folder} has no weights to start from.",
            expected=" or ".join(WEIGHTS),
            found=", ".join(sorted(path.name for path in folder.iterdir())[:10]),
            action="Download the whole model, not only its configuration.",
        )


def adapted(model: Any, options: GrpoOptions) -> Any:
    """The model with the adapter that the options describe. Raises BatonError BAD_OPTIONS, PYTHON_PACKAGE_MISSING."""
    lora = options.lora
    assert lora is not None
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise BatonError(
            "PYTHON_PACKAGE_MISSING",
            "LoRA needs peft.",
            expected="the packages of gpu-baton[grpo]",
            found=str(error),
            action="Run `baton setup`, or: pip install peft",
        ) from error
    modules = lora.target_modules
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType] -- any number, whatever the annotation says
        lora_dropout=lora.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
    )
    try:
        # In the base's dtype: DeepSpeed keeps the fp32 masters.
        return get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise BatonError(
            "BAD_OPTIONS",
            "grpo.lora.target_modules: peft finds nothing that it could adapt.",
            expected="names of linear layers of the model, such as q_proj, or all-linear",
            found=str(error)[:300],
            action="Correct grpo.lora.target_modules in the recipe.",
        ) from error
