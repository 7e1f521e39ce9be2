"""What the checks of whole runs share: a recipe, a started `baton run`, its events."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Node:
    """What a run uses: ranks and engines on real GPUs, or with Baton's small engine on stand-ins."""

    gpus: int = 1
    engines: int = 1
    simulated: bool = False
    #: Of each stand-in.
    memory: str = "512MiB"

    @property
    def tensor_parallel(self) -> int:
        return self.gpus // self.engines


def add_node_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--simulated", action="store_true", help="on stand-in GPUs")


def node_of(options: argparse.Namespace) -> Node:
    return Node(options.gpus, options.engines, options.simulated)


def write_recipe(folder: Path, model: Path, *, node: Node | None = None, release: str = "all", **engine: Any) -> Path:
    """A recipe as a user would write it (JSON is YAML), in a folder that has nothing else: `follow` would read the events
    of the run before."""
    node = node or Node()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sizes = {"maxModelLength": 128, "maxSequences": 256, "cacheBytes": "8GiB", **engine}
    if node.simulated:
        sizes |= {"maxSequences": 64, "cacheBytes": "8MiB", "options": {}}
    values = {
        "engine": {
            "kind": "small" if node.simulated else "vllm",
            "model": str(model),
            "engines": node.engines,
            "tensorParallel": node.tensor_parallel,
            "dtype": "bfloat16",
            **sizes,
        },
        "gpus": {"count": node.gpus, "simulated": {"memoryBytes": node.memory} if node.simulated else None},
        "ranks": node.gpus,
        "checks": {"logprobSequences": 16},
        "release": release,
        "out": str(folder),
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values, indent=1))
    return path


def torchrun(ranks: int, script: list[str]) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc_per_node", str(ranks), *script]


def accelerate_launch(config: Path, ranks: int, script: list[str]) -> list[str]:
    """As users start a script with their configuration file, see `write_accelerate_file`."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    # Any port: another training may run beside this one.
    return [*launcher, "--num_processes", str(ranks), "--main_process_port", "0", *script]


def write_accelerate_file(path: Path, zero: int) -> Path:
    """What `accelerate config` writes for DeepSpeed's ZeRO in bfloat16, and TRL's examples have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(ACCELERATE.format(zero=zero, zero3="true" if zero == 3 else "false"))
    return path


ACCELERATE = """\
compute_environment: LOCAL_MACHINE
debug: false
deepspeed_config:
  deepspeed_multinode_launcher: standard
  offload_optimizer_device: none
  offload_param_device: none
  zero3_init_flag: {zero3}
  zero3_save_16bit_model: {zero3}
  zero_stage: {zero}
distributed_type: DEEPSPEED
downcast_bf16: 'no'
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 1
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
"""


def standin_environment(folder: Path, gpus: int) -> dict[str, str]:
    """Of processes on stand-in GPUs that no controller starts; the table of their memory is in this folder."""
    sys.path[:0] = [str(ROOT / "python" / "src"), str(ROOT / "python" / "tests")]
    from standin import Standin

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table").unlink(missing_ok=True)
    made = Standin(folder, devices=gpus).environment()
    return {**made, "PYTHONPATH": os.pathsep.join([made["PYTHONPATH"], str(HERE)])}


class Run:
    """`baton run RECIPE -- torchrun SCRIPT`, with its output in FOLDER/output.log. With a configuration file of
    accelerate that is the launcher."""

    def __init__(self, recipe: Path, script: list[str], accelerate: Path | None = None) -> None:
        self.folder = recipe.parent
        command = ["node", str(ROOT / "dist/cli/main.js"), "run", str(recipe), "--log", "--"]
        ranks = json.loads(recipe.read_text())["ranks"]
        command += torchrun(ranks, script) if accelerate is None else accelerate_launch(accelerate, ranks, script)
        self.log = self.folder / "output.log"
        self.began = time.monotonic()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def wait(self, seconds: float) -> int:
        """The exit status; 124 when it took longer, and was ended."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
            return 124

    def output(self, characters: int = 6000) -> str:
        return self.log.read_text(errors="replace")[-characters:]

    def summary(self) -> dict[str, Any] | None:
        path = self.folder / "summary.json"
        return json.loads(path.read_text()) if path.exists() else None

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def follow(self, seconds: float) -> Iterator[dict[str, Any]]:
        """Events as they are written, until the run or the time ends."""
        path, ends = self.folder / "events.jsonl", time.monotonic() + seconds
        while not path.exists():
            if time.monotonic() > ends or self.process.poll() is not None:
                return
            time.sleep(0.01)
        with path.open() as file:
            part = ""
            while time.monotonic() < ends:
                part += file.readline()
                if part.endswith("\n"):
                    yield json.loads(part)
                    part = ""
                elif self.process.poll() is not None:
                    return
                else:
                    time.sleep(0.0005)

    def processes(self) -> list[int]:
        """Every living process with the run's folder on its command line, or started by one (by its environment)."""
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
                if stat[stat.rindex(")") + 2] == "Z":
                    continue
                words = Path(f"/proc/{entry}/environ").read_bytes() + Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if str(self.folder).encode() in words:
                found.append(int(entry))
        return found
