"""vLLM as it comes, as the peers use it: its sleep mode and its IPC weight transfer."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable
from typing import Any

import torch

from baton.bench.gpu.desk import MAX_LENGTH, MAX_SEQUENCES, engine_options
from baton.bench.gpu.part import Job

#: Larger than the largest tensor of the shapes here, which vLLM's default of 1 GiB is not.
_PACKED_BYTES = 2 << 30
#: The two ways in which vLLM's IPC transfer sends weights, and its arguments for them. Packed, they go in chunks
#: through one buffer, which is lost with every transfer of several chunks: torch counts receivers down from one, once
#: a chunk, in an unsigned integer (CudaIPCTypes.h), and frees the buffer at zero. So only what has room is packed.
PACKING: dict[str, dict[str, Any]] = {
    "unpacked": {"packed": False},
    "packed": {"packed": True, "packed_buffer_size_bytes": _PACKED_BYTES},
}


def start_vllm(job: Job, **more: Any) -> Any:
    """An `LLM` with its engine core in a process of its own, which is vLLM's default."""
    os.environ.update(
        # Handles of CUDA IPC travel pickled between the driver and the workers.
        VLLM_ALLOW_INSECURE_SERIALIZATION="1",
        # This process has a CUDA context already.
        VLLM_WORKER_MULTIPROC_METHOD="spawn",
        VLLM_NO_USAGE_STATS="1",
    )
    from vllm import LLM  # pyright: ignore

    return LLM(
        job.model,
        load_format="dummy",
        skip_tokenizer_init=True,
        enable_sleep_mode=True,
        dtype="bfloat16",
        max_model_len=MAX_LENGTH,
        max_num_seqs=MAX_SEQUENCES,
        # The cache is given in bytes, as for Baton's engine; vLLM shall not ask for more.
        gpu_memory_utilization=0.02,
        kv_cache_memory_bytes=job.cache_bytes,
        generation_config="vllm",
        disable_log_stats=True,
        weight_transfer_config={"backend": "ipc"},
        **engine_options(job),
        **more,
    )


def transfer(llm: Any, tensors: Iterable[tuple[str, Any]], **arguments: Any) -> None:
    """One update of all weights over CUDA IPC; the engine has them when this returns."""
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine  # pyright: ignore

    llm.start_weight_update()
    IPCWeightTransferEngine.trainer_send_weights(
        iter(tensors),
        {"send_mode": lambda info: llm.update_weights({"update_info": dict(vars(info))}), **arguments},
    )
    llm.finish_weight_update()
    torch.cuda.synchronize()


def let_go_of_sent() -> None:
    """What was sent is held until the sender asks whether the receiver has let go of it."""
    gc.collect()
    torch.cuda.ipc_collect()


def generate(llm: Any, prompts: list[list[int]], max_tokens: int, **sampling: Any) -> int:
    """How many tokens came."""
    from vllm import SamplingParams  # pyright: ignore

    parameters = SamplingParams(max_tokens=max_tokens, detokenize=False, ignore_eos=True, **sampling)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], parameters, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)
