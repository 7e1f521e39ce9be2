"""Starting processes on stand-in GPUs, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from extent import ALL

from baton.extensions import use_own_folder

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("BATON_BUILD", ROOT / "build" / "Release"))
MIB = 1 << 20


@dataclass
class Standin:
    """Stand-in GPUs with a table of their own, gone with the folder that they are in."""

    folder: Path
    devices: int = 4
    device_bytes: int = 512 * MIB

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a process on these GPUs, as the controller would make it."""
        folder = BUILD / "standin"
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("BATON_", "RANK", "LOCAL_"))
        }
        # Jobs take the same variants as the tests that look at what they found.
        environment["BATON_ALL_TESTS"] = "1" if ALL else "0"
        environment.update(
            LD_LIBRARY_PATH=os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH", "")])),
            CUDA_VISIBLE_DEVICES="",
            DS_ACCELERATOR="cpu",
            OMP_NUM_THREADS="1",
            HF_HUB_OFFLINE="1",
            TOKENIZERS_PARALLELISM="false",
            PYTHONPATH=os.pathsep.join([str(ROOT / "python" / "src"), str(ROOT / "python" / "tests")]),
            TORCH_EXTENSIONS_DIR=str(use_own_folder()),
            BATON_LIBRARY=str(BUILD / "libbaton.so"),
            BATON_STANDIN_TABLE=str(self.folder / "table"),
            BATON_STANDIN_DEVICES=str(self.devices),
            BATON_STANDIN_BYTES=str(self.device_bytes),
        )
        environment.update(more)
        return environment

    def run(self, command: list[str], deadline_seconds: float, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, in a session of its own that is killed when it takes too long."""
        with subprocess.Popen(
            command,
            env=self.environment(**more),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=deadline_seconds)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def python(self, code: str, deadline_seconds: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
        return self.run([sys.executable, "-c", code], deadline_seconds, **more)

    def torchrun(
        self,
        ranks: int,
        script: Path,
        *arguments: str,
        deadline_seconds: float = 500,
        launcher: str = "torchrun",
        **more: str,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `script` on `ranks` ranks with one of the launchers that people use."""
        python = [sys.executable, "-m"]
        port = str(_free_port())
        commands = {
            "torchrun": [*python, "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={port}"],
            "accelerate": [
                *python,
                "accelerate.commands.launch",
                "--use_deepspeed",
                "--num_machines=1",
                f"--num_processes={ranks}",
                f"--main_process_port={port}",
                "--mixed_precision=no",
                "--dynamo_backend=no",
            ],
        }
        return self.run([*commands[launcher], str(script), *arguments], deadline_seconds, **more)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_build() -> None:
    """Without the native build these tests cannot say anything, so they fail."""
    missing = [str(path) for path in (BUILD / "libbaton.so", BUILD / "standin" / "libcuda.so.1") if not path.exists()]
    if missing:
        pytest.fail(f"not built: {', '.join(missing)}; run `npm install` first")
