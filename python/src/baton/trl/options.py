"""What of TRL's options Baton's engines can do, and errors for what they cannot, before anything is built."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from trl.trainer.grpo_config import GRPOConfig

from baton.completion import Sampling
from baton.errors import BatonError
from baton.training.deepspeed_support import check_zero

#: Options of the generation that TRL would do, and the key of Baton's recipe that takes their place.
_OF_THE_RECIPE = {
    "vllm_tensor_parallel_size": "engine.tensorParallel",
    "vllm_gpu_memory_utilization": "engine.cacheBytes, or engine.options.gpuMemoryUtilization",
    "vllm_max_model_length": "engine.maxModelLength",
    "vllm_model_impl": "engine.options.modelImpl",
    "vllm_enable_sleep_mode": "nothing (engines always sleep)",
    "cache_implementation": "engine.cacheBytes",
    "ds3_gather_for_generation": "nothing (engines read weights where they lie)",
}

#: Of `model_init_kwargs`: an engine gets the trainer's weights, which have to be ordinary numbers.
_QUANTIZED = ("quantization_config", "load_in_4bit", "load_in_8bit")

#: Options of a server that TRL would speak to: set, they say that one is expected.
_OF_A_SERVER = (
    "vllm_server_base_url",
    "vllm_server_host",
    "vllm_server_port",
    "vllm_server_timeout",
    "vllm_group_port",
)

#: Values of sampling options that change nothing; with any other one they are refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1),
    "n": (None, 1),
}


def honoured(args: GRPOConfig, given: Mapping[str, Any] | None = None) -> GRPOConfig:
    """A copy of `args` in which generation goes through an engine, whatever `use_vllm` says.

    `given`: the trainer's other arguments, by name.
    Raises BatonError NO_CONTROLLER or UNSUPPORTED_TRL_OPTION, which names every such option.
    """
    from baton.connection import Controller

    Controller.from_environment()
    if args.deepspeed_plugin is None:
        raise BatonError(
            "UNSUPPORTED_TRL_OPTION",
            "The training does not use DeepSpeed, whose state is what Baton hands over.",
            expected="DeepSpeed, ZeRO stage 1, 2 or 3",
            found="no DeepSpeed configuration",
            action="Start with `accelerate launch --config_file zero3.yaml train.py`, or set GRPOConfig(deepspeed=…).",
        )
    plugin: Any = args.deepspeed_plugin
    check_zero(plugin.deepspeed_config.get("zero_optimization", {}).get)
    given = given or {}
    problems = [*_problems(args, given.get("rollout_func")), *_of_sampling(args), *_of_the_model(args, given)]
    if problems:
        raise BatonError(
            "UNSUPPORTED_TRL_OPTION",
            "Baton cannot honour all of TRL's options that are set.",
            expected="; ".join(expected for _, expected in problems),
            found="; ".join(found for found, _ in problems),
            action="Change them in the trainer's arguments; docs/from-trl.md says what applies and why.",
        )
    ours = copy.copy(args)
    ours.use_vllm = True
    return ours


def of_the_recipe(args: GRPOConfig) -> list[str]:
    """A line for each option that is set and that Baton's recipe decides instead."""
    defaults = {name: GRPOConfig.__dataclass_fields__[name].default for name in _OF_THE_RECIPE}
    return [
        f"{name}={getattr(args, name)!r} has no effect: {key} in the recipe decides"
        for name, key in _OF_THE_RECIPE.items()
        if getattr(args, name) != defaults[name]
    ]


def check_lengths(args: GRPOConfig, max_model_length: int) -> None:
    """Whether a completion of the length asked for fits beside a prompt. Raises BatonError UNSUPPORTED_TRL_OPTION.

    Engines cut a completion off where the model's length ends, before the length that was asked for.
    """
    more: Any = args.generation_kwargs or {}
    longest = more.get("max_tokens", more.get("max_new_tokens", args.max_completion_length))
    if longest is not None and longest >= max_model_length:
        raise BatonError(
            "UNSUPPORTED_TRL_OPTION",
            "Completions of the length asked for do not fit into the engine.",
            expected=f"max_completion_length below engine.maxModelLength, {max_model_length} tokens with the prompt",
            found=f"max_completion_length {longest}",
            action="Raise engine.maxModelLength in the recipe to the longest prompt plus max_completion_length.",
        )


def sampling_of(
    settings: Mapping[str, Any], generation_kwargs: Mapping[str, Any], stop_token_ids: tuple[int, ...], seed: int
) -> Sampling:
    """One completion of each prompt. `settings`: temperature, top_k, top_p, min_p and max_tokens, of which
    `generation_kwargs` go before. Raises BatonError BAD_SAMPLING.

    Those are in vLLM's words, and in transformers' where they say the same. `stop_token_ids` are the model's.
    """
    more = dict(generation_kwargs)
    greedy = more.get("do_sample") is False
    top_k = more.get("top_k", settings["top_k"])
    return Sampling(
        max_tokens=more.get("max_tokens", more.get("max_new_tokens", settings["max_tokens"])),
        temperature=0.0 if greedy else more.get("temperature", settings["temperature"]),
        # None and -1 are words for all tokens.
        top_k=0 if top_k in (None, -1) else top_k,
        top_p=more.get("top_p", settings["top_p"]),
        min_p=more.get("min_p", settings["min_p"]) or 0.0,
        stop_token_ids=(*stop_token_ids, *(more.get("stop_token_ids") or ())),
        seed=seed,
    )


#: What `sampling_of` understands.
_UNDERSTOOD = frozenset(
    {"do_sample", "max_tokens", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "stop_token_ids"}
)


def _problems(args: GRPOConfig, rollout_func: Any) -> list[tuple[str, str]]:
    """(found, expected) of each option that cannot be honoured."""
    found: list[tuple[str, str]] = []
    if args.vllm_mode != "colocate":
        found.append((f"vllm_mode={args.vllm_mode!r}", "vllm_mode='colocate': the engines share the ranks' GPUs"))
    for name in _OF_A_SERVER:
        if getattr(args, name) != GRPOConfig.__dataclass_fields__[name].default:
            found.append((f"{name}={getattr(args, name)!r}", f"no {name}: there is no server"))
    if args.vllm_structured_outputs_regex is not None:
        found.append(("vllm_structured_outputs_regex", "none: the engines sample freely"))
    if args.use_transformers_continuous_batching:
        found.append(("use_transformers_continuous_batching=True", "False: Baton's engines generate"))
    if args.sync_ref_model:
        found.append(("sync_ref_model=True", "False: a reference model is saved once and never written again"))
    if args.cast_lm_head_to_fp32:
        found.append(("cast_lm_head_to_fp32=True", "False: the engine's weights are all of one type"))
    if rollout_func is not None:
        found.append(("rollout_func", "none: generation goes through TRL's own loop, tools and environments too"))
    found += _not_neutral("repetition_penalty", args.repetition_penalty, "repetition_penalty")
    kwargs: Any = args.generation_kwargs or {}
    for name, value in kwargs.items():
        if name in _NEUTRAL:
            found += _not_neutral(name, value, f"generation_kwargs[{name!r}]")
        elif name not in _UNDERSTOOD:
            found.append((f"generation_kwargs[{name!r}]", f"only {', '.join(sorted(_UNDERSTOOD))}"))
    return found


def _of_sampling(args: GRPOConfig) -> list[tuple[str, str]]:
    """Numbers that make no sense, before an engine meets them."""
    settings = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    kwargs: Any = args.generation_kwargs or {}
    try:
        sampling_of(settings | {"max_tokens": args.max_completion_length or 1}, kwargs, (), seed=0)
    except BatonError as error:
        return [(error.found, error.expected)]
    return []


def _of_the_model(args: GRPOConfig, given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What can be seen of the model and its adapters before they are built; the rest is found by `adapters`."""
    kwargs: Any = args.model_init_kwargs or {}
    model: Any = given.get("model")
    asked = [f"model_init_kwargs[{name!r}]" for name in _QUANTIZED if kwargs.get(name)]
    if given.get("quantization_config") is not None:
        asked.append("quantization_config")
    if getattr(model, "is_quantized", False):
        asked.append("a quantized model")
    found = [(each, "a model in bfloat16, float16 or float32: engines take its weights as they are") for each in asked]
    configs = [given.get("peft_config"), *getattr(model, "peft_config", {}).values()]
    for config in configs:
        if config is not None:
            found += _of_an_adapter(config)
    return found


def _of_an_adapter(config: Any) -> list[tuple[str, str]]:
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        return [(f"adapters of the kind {kind}", "LoRA")]
    found: list[tuple[str, str]] = []
    if getattr(config, "lora_bias", False):
        found.append(("peft_config: lora_bias=True", "adapters without a bias of their own"))
    variants = {field.name for field in dataclasses.fields(config) if field.metadata.get("is_lora_variant")}
    for name in sorted(variants | {"use_dora"}):
        if getattr(config, name, None):
            found.append((f"peft_config: {name}={getattr(config, name)!r}", "plain LoRA or rsLoRA"))
    return found


def _not_neutral(name: str, value: Any, shown: str) -> list[tuple[str, str]]:
    if value in _NEUTRAL[name]:
        return []
    return [(f"{shown}={value!r}", f"{shown}={_NEUTRAL[name][1]}")]
