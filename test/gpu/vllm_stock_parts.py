"""The parts of vllm_check.py that run vLLM without Baton: its tokens, its own sleep, wake and weight transfer."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from vllm_common import (
    CACHE,
    CYCLES,
    GIB,
    PROMPTS,
    Results,
    alone,
    big_tensors,
    config_folder,
    load_reference,
    named,
    spread,
    used_gib,
)


def stock(folder: Path, part: str) -> Results:
    os.environ.update(VLLM_ALLOW_INSECURE_SERIALIZATION="1", VLLM_WORKER_MULTIPROC_METHOD="spawn")
    from vllm import LLM, SamplingParams

    results = Results(folder, part)
    small = part == "stock"
    began = time.monotonic()
    llm = LLM(
        str(folder / "checkpoint-1") if small else config_folder(folder, "big"),
        load_format="auto" if small else "dummy",
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_sleep_mode=True,
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=64,
        gpu_memory_utilization=0.02,
        kv_cache_memory_bytes=CACHE[part],
        generation_config="vllm",
        disable_log_stats=True,
        weight_transfer_config={"backend": "ipc"},
    )
    results.note("start_seconds", round(time.monotonic() - began, 1))
    prompts: Any = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True, detokenize=False)
    tokens = [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params, use_tqdm=False)]
    (folder / f"greedy-{part}").write_text(json.dumps(tokens))
    with alone(folder, part):
        times: dict[str, list[float]] = {"sleep": [], "wake weights": [], "wake cache": []}
        awake, asleep = used_gib(), 0.0
        for _ in range(CYCLES):
            for name, work in (
                ("sleep", lambda: llm.sleep(2)),
                ("wake weights", lambda: llm.wake_up(["weights"])),
                ("wake cache", lambda: llm.wake_up(["kv_cache"])),
            ):
                at = time.perf_counter()
                work()
                times[name].append(time.perf_counter() - at)
                if name == "sleep":
                    asleep = used_gib()
        for name, values in times.items():
            results.note(name, spread(values))
        results.note("gpu", {"awake_gib": awake, "asleep_gib": asleep})
        try:
            transfer(results, llm, folder, small)
        except Exception as error:
            results.note("ipc transfer", f"not measured: {type(error).__name__}: {error}")
    return results


def transfer(results: Results, llm: Any, folder: Path, small: bool) -> None:
    """vLLM's own IPC weight transfer, as its documentation says, from tensors of this process."""
    import torch
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine

    if small:
        tensors = [(name, tensor.cuda()) for name, tensor in named(load_reference(folder, 1)).items()]
    else:
        tensors = [
            (name, torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02))
            for name, shape in big_tensors().items()
        ]
    total = sum(tensor.numel() * 2 for _, tensor in tensors)
    size = 4 * GIB
    flat = torch.empty(size, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(flat)
    limit = []
    for _ in range(8):
        torch.cuda.synchronize()
        at = time.perf_counter()
        other.copy_(flat)
        torch.cuda.synchronize()
        limit.append(time.perf_counter() - at)
    results.note("device to device copy", {"gb_per_s": size / 1e9 / min(limit), **spread(limit)})
    del flat, other
    torch.cuda.empty_cache()
    llm.init_weight_transfer_engine({"init_info": {}})
    times = []
    for _ in range(4):
        at = time.perf_counter()
        llm.start_weight_update()
        IPCWeightTransferEngine.trainer_send_weights(
            iter(tensors),
            {"send_mode": lambda info: llm.update_weights({"update_info": dict(vars(info))}), "packed": False},
        )
        torch.cuda.synchronize()
        llm.finish_weight_update()
        times.append(time.perf_counter() - at)
    results.note("ipc transfer", {"bytes": total, **spread(times)})
