"""DeepSpeed's configuration for the options of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from baton.errors import BatonError
from baton.training.grpo.options import GrpoOptions
from baton.training.grpo.shape import ModelShape

#: What the options say already, and where.
_OURS = {
    "train_batch_size": "grpo.prompts and grpo.num_generations",
    "train_micro_batch_size_per_gpu": "grpo.micro_batch",
    "gradient_accumulation_steps": "grpo.gradient_accumulation_steps",
    "gradient_clipping": "grpo.max_grad_norm",
    "optimizer": "grpo.learning_rate, weight_decay and betas",
    "scheduler": "grpo.warmup_steps",
    "bf16": "engine.dtype",
    "fp16": "engine.dtype: bfloat16",
}
#: DeepSpeed's own defaults, in elements: for models of some billions of parameters.
_LARGEST_BUCKET, _LARGEST_PREFETCH = 500_000_000, 50_000_000
_SMALLEST_BUCKET = 1 << 18


def deepspeed_config(options: GrpoOptions, shape: ModelShape) -> dict[str, Any]:
    """For the policy. Raises BatonError BAD_OPTIONS for keys of `grpo.deepspeed` that have a place elsewhere."""
    _check(options)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": options.micro_batch,
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "gradient_clipping": options.max_grad_norm,
        "bf16": {"enabled": options.dtype == "bfloat16"},
        "zero_optimization": _zero(options, shape),
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    return _merged(config, options.deepspeed)


def reference_config(options: GrpoOptions, shape: ModelShape) -> dict[str, Any]:
    """For a reference model that ZeRO-3 partitions: no optimizer."""
    kept = ("train_micro_batch_size_per_gpu", "bf16", "zero_optimization", "steps_per_print")
    whole = deepspeed_config(options, shape)
    return {key: whole[key] for key in kept}


def _zero(options: GrpoOptions, shape: ModelShape) -> dict[str, Any]:
    # A bucket larger than the model is memory for nothing.
    bucket = min(max(1 << (shape.elements // 8).bit_length(), _SMALLEST_BUCKET), _LARGEST_BUCKET)
    zero: dict[str, Any] = {
        "stage": options.zero_stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if options.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": min(bucket, _LARGEST_PREFETCH),
            # As transformers has it for "auto": norms and biases stay whole, matrices do not.
            "stage3_param_persistence_threshold": 10 * shape.hidden_size,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    return zero


def _check(options: GrpoOptions) -> None:
    zero = options.deepspeed.get("zero_optimization")
    given = {key: key for key in options.deepspeed}
    ours = dict(_OURS)
    if isinstance(zero, Mapping) and "stage" in zero:
        given["zero_optimization.stage"], ours["zero_optimization.stage"] = "stage", "grpo.zero_stage"
    for key in given:
        if key in ours:
            raise BatonError(
                "BAD_OPTIONS",
                f"grpo.deepspeed.{key}: this has a place of its own.",
                expected=ours[key],
                found=f"{key} in grpo.deepspeed",
                action=f"Set {ours[key]} instead.",
            )


def _merged(base: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `more`; mappings are merged key by key."""
    result = dict(base)
    for key, value in more.items():
        mine = result.get(key)
        both = isinstance(mine, dict) and isinstance(value, Mapping)
        result[key] = _merged(cast("dict[str, Any]", mine), cast("Mapping[str, Any]", value)) if both else value
    return result
