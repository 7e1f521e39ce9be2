"""The recipe's engine section as arguments of vLLM's engine. No vLLM is needed to make them."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from baton.engines.adapter import EngineConfig
from baton.errors import BatonError
from baton.weights.dtypes import ELEMENT_BYTES

WORKER_EXTENSION = "baton.engines.vllm.worker.WorkerExtension"
#: Tokens of a block of the KV cache, when the options do not say otherwise.
BLOCK_TOKENS = 16
#: Room is measured by the controller, and the cache has a size of its own: vLLM shall not refuse to start because a
#: trainer is on the same GPU.
NOMINAL_UTILIZATION = 0.01

#: Arguments that Baton decides, and the key of the recipe that says what the user may want to say.
RESERVED = {
    "model": "engine.model",
    "tensor_parallel_size": "engine.tensorParallel",
    "dtype": "engine.dtype",
    "max_model_len": "engine.maxModelLength",
    "max_num_seqs": "engine.maxSequences",
    "kv_cache_memory_bytes": "engine.cacheBytes",
    "device_ids": "no key: GPUs follow from engine.engines and engine.tensorParallel",
    "distributed_executor_backend": "no key: Baton starts the workers",
    "enable_sleep_mode": "no key: always on",
    "enable_cumem_allocator": "no key: always on",
    "load_format": "no key: the weights come from the trainer",
    "skip_tokenizer_init": "no key: tokens go in and out",
    "worker_extension_cls": "no key: it is Baton's",
    "logprobs_mode": "no key: logprobs are those at the sampling temperature",
    "pipeline_parallel_size": "no key: one GPU holds a slice of every layer",
    "data_parallel_size": "engine.engines",
}


def engine_arguments(config: EngineConfig, known: Collection[str]) -> dict[str, Any]:
    """Keyword arguments of vLLM's EngineArgs; `known`: the names that this vLLM has.

    Options of the recipe pass through, in snake_case or camelCase. With `gpuMemoryUtilization` and no cacheBytes
    vLLM sizes the cache itself. Raises BatonError BAD_ENGINE_OPTION or CACHE_SIZE_UNKNOWN.
    """
    options = {_snake(name): value for name, value in config.options.items()}
    for name in options:
        if name in RESERVED:
            raise _refused(name, f"Baton decides it ({RESERVED[name]})")
        if name not in known:
            close = difflib.get_close_matches(name, known, 3)
            raise _refused(name, "this vLLM has no such argument" + (f"; near: {', '.join(close)}" if close else ""))
    arguments: dict[str, Any] = {
        "model": config.model,
        "tensor_parallel_size": config.tensor_parallel,
        "dtype": config.dtype,
        "max_model_len": config.max_model_length,
        "max_num_seqs": config.max_sequences,
        "distributed_executor_backend": "mp" if config.tensor_parallel > 1 else "uni",
        "enable_sleep_mode": True,
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "worker_extension_cls": WORKER_EXTENSION,
        "generation_config": "vllm",
        "disable_log_stats": True,
        "seed": 0,
        **options,
    }
    if config.cache_bytes is not None or "gpu_memory_utilization" not in options:
        arguments["kv_cache_memory_bytes"] = cache_bytes(config, int(options.get("block_size") or BLOCK_TOKENS))
        arguments.setdefault("gpu_memory_utilization", NOMINAL_UTILIZATION)
    return arguments


def cache_bytes(config: EngineConfig, block_tokens: int) -> int:
    """Bytes of KV cache on each GPU: what the recipe says, or `max_sequences` sequences of full length.

    Raises BatonError CACHE_SIZE_UNKNOWN when config.json does not tell what a token needs.
    """
    if config.cache_bytes is not None:
        return config.cache_bytes
    raw: Mapping[str, Any] = {}
    try:
        raw = json.loads((Path(config.model) / "config.json").read_text())
        raw = raw.get("text_config") or raw
        heads = int(raw["num_attention_heads"])
        kv_heads = int(raw.get("num_key_value_heads") or heads)
        head_dim = int(raw.get("head_dim") or int(raw["hidden_size"]) // heads)
        layers = int(raw["num_hidden_layers"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BatonError(
            "CACHE_SIZE_UNKNOWN",
            "How much KV cache this model needs cannot be told from its config.json.",
            expected="num_hidden_layers, num_attention_heads and hidden_size or head_dim",
            found=f"{type(error).__name__}: {error}",
            action="Set engine.cacheBytes in the recipe.",
        ) from error
    here = max(1, kv_heads // config.tensor_parallel)
    block = 2 * here * head_dim * block_tokens * ELEMENT_BYTES[config.dtype] * layers
    # One block more a sequence for what is scheduled ahead, and vLLM's own empty one.
    each = -(-config.max_model_length // block_tokens) + 1
    return block * (config.max_sequences * each + 1)


def visible_devices(wanted: Sequence[int], inherited: str | None, count: int) -> str:
    """CUDA_VISIBLE_DEVICES with the engine's GPUs first and all others behind them: parameters of the ranks there are
    mapped too. `wanted` are numbers on the node: positions in what was `inherited`, of `count` GPUs when it is None.

    Raises BatonError BAD_DEVICES.
    """
    names = [str(number) for number in range(count)] if inherited is None else inherited.split(",")
    names = [name.strip() for name in names if name.strip()]
    if any(not 0 <= number < len(names) for number in wanted):
        raise BatonError(
            "BAD_DEVICES",
            f"The engine shall run on GPUs {', '.join(map(str, wanted))}, which are not all there.",
            expected=f"numbers below {len(names)}",
            found=f"CUDA_VISIBLE_DEVICES={inherited}" if inherited is not None else f"{count} GPUs",
            action="Correct gpus.count, engine.engines or engine.tensorParallel, or make more GPUs visible.",
        )
    if any(not name.isdigit() for name in names):
        raise BatonError(
            "BAD_DEVICES",
            "vLLM needs numbers in CUDA_VISIBLE_DEVICES.",
            expected="whole numbers with commas between them",
            found=f"CUDA_VISIBLE_DEVICES={inherited}",
            action="Name the GPUs by their numbers, not by UUID.",
        )
    own = [names[number] for number in wanted]
    return ",".join(own + [name for name in names if name not in own])


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda match: "_" + match[1].lower(), name)


def _refused(name: str, why: str) -> BatonError:
    return BatonError(
        "BAD_ENGINE_OPTION",
        f"engine.options has {name!r}, which cannot be handed on to vLLM: {why}.",
        expected="arguments of vLLM's engine that Baton does not set itself",
        found=name,
        action="Correct engine.options in the recipe.",
    )
