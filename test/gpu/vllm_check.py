"""The vLLM adapter on one real GPU: is the engine the trainer, does its memory go, and how long does it take.

`vllm_check.py all FOLDER` starts the parts below side by side (a start of vLLM takes over a minute), as many as the GPU
has room for, and lets them take turns for what is timed. Each part prints what it finds and writes FOLDER/PART.json;
the exit status says whether every check held.

    eager, graphs  the adapter with a model of SmolLM2's shape: weights, tokens, logprobs, memory, a second epoch
    stock          vLLM alone with the same checkpoint from disk: its tokens, its own sleep and wake
    rounded        a small Qwen3 whose trainer has float32 and whose engine bfloat16
    moe, moe-loads a small mixture of experts (vLLM's _moe_C is needed), by copies and by load_weights at every sync
    big, bigstock  the same times with a model of Qwen2.5-7B's shape
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from support import GIB, device_bytes_total
from vllm_adapter_parts import adapter, big
from vllm_common import BIG, SMALL, common, used_gib
from vllm_moe_part import moe, rounded
from vllm_stock_parts import stock

PARTS = ("eager", "graphs", "stock", "big", "bigstock", "rounded", "moe", "moe-loads")
#: What a part takes of the GPU, its engine and the trainer beside it.
NEEDED_GIB, SMALL_GIB = {"big": 50.0, "bigstock": 50.0}, 5.0
SPARE_GIB = 4.0


def prepare(folder: Path) -> None:
    """The random model of SmolLM2's shape as a checkpoint on disk, and the config of the big one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, values in (("small", SMALL), ("big", BIG)):
        (folder / f"model-{name}").mkdir(exist_ok=True)
        (folder / f"model-{name}" / "config.json").write_text(json.dumps(values))
    for epoch in (1, 2):
        torch.manual_seed(epoch)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder / "model-small"), dtype=torch.bfloat16
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # ones would hide a missing norm
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        target = folder / f"checkpoint-{epoch}"
        model.save_pretrained(target)
        (target / "config.json").write_text(json.dumps(SMALL))


def waves(parts: list[str], room_gib: float) -> list[list[str]]:
    """Which parts run at once: each in the first wave that has room for it."""
    found: list[list[str]] = []
    for part in parts:
        for wave in found:
            if sum(NEEDED_GIB.get(other, SMALL_GIB) for other in [*wave, part]) <= room_gib:
                wave.append(part)
                break
        else:
            found.append([part])
    return found


def run_wave(folder: Path, parts: list[str]) -> dict[str, int]:
    """Exit status by part, once all have ended."""
    environment = {**os.environ, "CHECK_PARTS": ",".join(parts)}
    running: dict[str, subprocess.Popen[bytes]] = {}
    for part in parts:
        log = (folder / f"{part}.log").open("w")
        running[part] = subprocess.Popen(
            [sys.executable, __file__, part, str(folder)], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    status: dict[str, int] = {}
    while len(status) < len(parts):
        for part, process in running.items():
            code = process.poll()
            if part not in status and code is not None:
                status[part] = code
                (folder / f"started-{part}").touch()  # nobody waits for one that has ended
                print(f"{part}: exit status {code}", flush=True)
        time.sleep(0.2)
    return status


def everything(folder: Path, parts: list[str]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("started-*"):
        old.unlink()
    prepare(folder)
    status: dict[str, int] = {}
    for wave in waves(parts, device_bytes_total() / GIB - used_gib() - SPARE_GIB):
        status |= run_wave(folder, wave)
    if {"eager", "stock"} <= set(parts) and all((folder / f"greedy-{part}").exists() for part in ("eager", "stock")):
        ours, theirs = (json.loads((folder / f"greedy-{part}").read_text()) for part in ("eager", "stock"))
        shared = [common(a, b) for a, b in zip(ours, theirs, strict=True)]
        print(f"greedy tokens shared with vLLM that loaded the checkpoint, by prompt: {shared}", flush=True)
        if ours != theirs:
            status["greedy"] = 1
    return int(any(status.values()))


def main() -> int:
    what, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if what == "all":
        return everything(folder, sys.argv[3:] or list(PARTS))
    ours = {"eager": adapter, "graphs": adapter, "big": big, "rounded": rounded, "moe": moe, "moe-loads": moe}
    parts = {**ours, "stock": stock, "bigstock": stock}
    results = parts[what](folder, what)
    print("failed: " + (", ".join(results.failed) or "nothing"), flush=True)
    return int(bool(results.failed))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
