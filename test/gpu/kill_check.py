"""A rank, the engine, the launcher and the controller killed during each phase of a run on real GPUs.

    kill_check.py FOLDER [--model CHECKPOINT] [--at-once N] [--victim NAME ...] [--phase NAME ...]
        [--gpus N] [--engines M] [--simulated]

Of several GPUs the last rank is killed, and the last worker of the last engine. The ranks learn sums with CHECKPOINT
(SmolLM2-135M-Instruct); without it they hand a small random model over. Runs go side by side on the GPUs, since a start
of vLLM takes most of the time. Of each: one error with a stable code, noticed within a second, nothing alive and no
memory on the GPUs within three.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from run_support import HERE, Node, Run, add_node_options, node_of, write_recipe
from small_model import write_config
from support import MIB, Checks, device_bytes_used

PHASES = ("train", "release", "wake", "plan", "sync", "cache", "generate", "sleep", "resume")
#: A single rank's arrival takes no time, so it is not among them. The handoff after the first: the optimizer has its
#: state by then. The training before it belongs to the first, and plans are made in the first only.
HANDOFF = 2
FIRST_HANDOFF = ("train", "plan")
#: By the first word of the victim's name.
CODES = {
    "rank": {"RANK_DIED", "LAUNCHER_FAILED"},
    "engine": {"ENGINE_DIED", "WORKER_DIED"},
    "worker": {"ENGINE_DIED", "WORKER_DIED"},
    "launcher": {"LAUNCHER_FAILED", "LAUNCHER_DIED", "RANK_DIED"},
}
NOTICED_SECONDS, GONE_SECONDS, START_SECONDS = 1.0, 3.0, 400.0


def gpu_pids(node: Node) -> set[int]:
    """Processes with memory on the GPUs. Of stand-ins the run's own report says it: their table ends with the run."""
    if node.simulated:
        return set()
    import pynvml

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(gpu) for gpu in range(node.gpus)]
    return {one.pid for handle in handles for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}


def bytes_used(node: Node) -> list[int]:
    """On each GPU, by everybody, as NVML says; nothing for stand-ins."""
    return [] if node.simulated else [device_bytes_used(gpu) for gpu in range(node.gpus)]


def child_of(parent: int) -> int | None:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            if int(stat[stat.rindex(")") + 2 :].split()[1]) == parent:
                return int(entry)
    return None


def strike(run: Run, victim: str, phase: str) -> tuple[float, str, set[int]] | None:
    """Kills the victim when the phase begins. When that was (monotonic), in which phase, and the processes then."""
    pids: dict[str, int] = {"controller": run.process.pid}
    for event in run.follow(START_SECONDS):
        if event["type"] == "process" and event["what"] in ("connected", "spawned"):
            pids.setdefault(event["process"], event["pid"])
        if event["type"] != "phase" or event["to"] != phase or event["handoff"] < HANDOFF - (phase in FIRST_HANDOFF):
            continue
        pid = pids[victim] if victim != "launcher" else child_of(pids["launcher"])
        if pid is None:
            return None
        alive = set(run.processes())
        os.kill(pid, signal.SIGKILL)
        return time.monotonic(), phase, alive
    return None


def script_of(folder: Path, model: Path | None) -> list[str]:
    if model is None:
        script = [str(HERE / "handoff_rank.py"), "--model", str(folder / "model"), "--zero", "3"]
        return [*script, "--handoffs", "100000", "--out", str(folder / "records.json")]
    script = [str(HERE / "smollm2.py"), "--model", str(model), "--zero", "2", "--steps", "2000"]
    return [*script, "--problems", "4", "--samples", "4", "--held-out", "16"]


def trouble(folder: Path, model: Path | None, node: Node, victim: str, phase: str) -> dict[str, Any]:
    name = f"{victim.replace(' ', '')}-{phase}"
    engine = {"cacheBytes": "512MiB", "maxSequences": 16, "options": {"enforceEager": True}}
    recipe = write_recipe(folder / name, model or folder / "model", node=node, **engine)
    run = Run(recipe, script_of(folder, model))
    found: dict[str, Any] = {"victim": victim, "phase": phase}
    struck = strike(run, victim, phase)
    if struck is None:
        run.wait(1)
        return {**found, "wrong": f"the phase was not met: {run.output(800)}"}
    at, _, alive = struck
    status = run.wait(30)
    while time.monotonic() - at < 10 and (left := set(run.processes())):
        time.sleep(0.01)
    left = set(run.processes())
    found["goneSeconds"] = round(time.monotonic() - at, 3)
    on_gpu = alive & gpu_pids(node)
    events = run.events()
    exits = [event for event in events if event["type"] == "exit"]
    ends = [event for event in events if event["type"] == "phase" and event["to"] == "end"]
    failure = (exits[-1]["failure"] if exits else None) or {}
    found.update(status=status, code=failure.get("code"), message=failure.get("message"))
    if ends:
        found["noticedSeconds"] = round(ends[-1]["monotonicMs"] / 1e3 - at, 3)
        found["inPhase"] = ends[-1]["from"]
    wrong = []
    if status == 0:
        wrong.append("exit status 0")
    if victim != "controller":
        if failure.get("code") not in CODES[victim.split()[0]]:
            wrong.append(f"code {failure.get('code')}")
        if found.get("noticedSeconds", 99.0) > NOTICED_SECONDS:
            wrong.append("noticed late")
    if left:
        wrong.append(f"{len(left)} processes left")
    if found["goneSeconds"] > GONE_SECONDS:
        wrong.append("gone late")
    if on_gpu:
        wrong.append(f"processes on the GPU: {sorted(on_gpu)}")
    found["wrong"] = "; ".join(wrong)
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    add_node_options(parser)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--victim", action="append")
    parser.add_argument("--phase", action="append", choices=PHASES)
    parser.add_argument("--json")
    options = parser.parse_args()
    folder, model, node = options.folder.resolve(), options.model, node_of(options)
    model = model.resolve() if model else None
    write_config(folder / "model", node.simulated)
    last = node.tensor_parallel - 1
    engine = "engine 0" if last == 0 else f"worker {last} of engine {node.engines - 1}"
    cases = [(victim, phase) for victim in (f"rank {node.gpus - 1}", engine) for phase in PHASES]
    cases += [("launcher", "generate"), ("controller", "sync"), ("controller", "generate")]
    cases = [case for case in cases if not options.victim or case[0].split()[0] in options.victim]
    cases = [case for case in cases if not options.phase or case[1] in options.phase]
    checks, before = Checks("kills"), bytes_used(node)
    telling = threading.Lock()

    def one(case: tuple[str, str]) -> dict[str, Any]:
        found = trouble(folder, model, node, *case)
        with telling:
            checks.that(f"{case[0]} killed in {case[1]}", not found["wrong"], json.dumps(found))
            print(f"     {json.dumps(found)}", flush=True)
        return found

    with ThreadPoolExecutor(options.at_once) as pool:
        results = list(pool.map(one, cases))
    time.sleep(GONE_SECONDS)
    more = [after - first for after, first in zip(bytes_used(node), before, strict=True)]
    checks.that("no memory is in use on the GPUs that was not before", all(one < MIB for one in more), str(more))
    (folder / "kills.json").write_text(json.dumps(results, indent=1))
    return checks.end(options.json)


if __name__ == "__main__":
    sys.exit(main())
