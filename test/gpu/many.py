"""Everything of Baton that needs several GPUs, one part after the other; see many.sh.

    many.py OUT [PART ...] [--simulated N] [--work FOLDER] [--seconds LIMIT] [--graphs HOW] [--list]

Each part has a deadline and leaves what it finds as it goes, so that parts may be run by several commands with the same
folder of work: OUT/many.json, many.md and many.svg hold what all of them have found so far. Exit code 1 when a check
fails or a part does not come to its end; a goal that is missed is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from many_parts import Part, parts_for
from many_report import report
from run_support import ROOT

#: Between what asks a part to end and what makes it.
END_SECONDS = 30.0
#: Kept of LIMIT for the report.
REPORT_SECONDS = 25.0


class Running:
    """A part that has begun."""

    def __init__(self, part: Part, work: Path) -> None:
        self.part, self.work = part, work
        self.began = time.monotonic()
        self._log = work / f"{part.name}.log"
        (work / f"{part.name}.json").unlink(missing_ok=True)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(part.command, stdout=log, stderr=log, start_new_session=True)
        print(f"== {part.name}: {' '.join(part.command)}", flush=True)

    def ended(self, ends: float) -> bool:
        """Whether it is over; at its deadline, or the whole command's, it is made to be."""
        status = self._process.poll()
        late = time.monotonic() > min(self.began + self.part.seconds, ends)
        if status is None and not late:
            return False
        if status is None:
            status = f"ended after {time.monotonic() - self.began:.0f} s"
            self._end()
        self._record(status)
        return True

    def _end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                continue

    def _record(self, status: Any) -> None:
        seconds = round(time.monotonic() - self.began, 1)
        record = {"name": self.part.name, "status": status, "seconds": seconds, "command": self.part.command}
        (self.work / f"{self.part.name}.part").write_text(json.dumps(record))
        print(f"   {self.part.name}: {'done' if status == 0 else f'FAILED ({status})'}, {seconds:.0f} s", flush=True)
        lines = self._log.read_text(errors="replace").splitlines()
        shown = [line for line in lines if line.startswith(("FAIL", "  FAILED"))]
        for line in shown or (lines[-15:] if status != 0 else []):
            print(f"     {line[:300]}", flush=True)


def run_parts(parts: list[Part], work: Path, ends: float) -> list[str]:
    """What was not begun, for lack of time or of something else."""
    not_run = [f"{part.name}: {part.lacking} is missing" for part in parts if part.lacking]
    waiting = [part for part in parts if not part.lacking]
    running: list[Running] = []
    while waiting or running:
        while waiting and not any(one.part.alone for one in running) and not (waiting[0].alone and running):
            part = waiting.pop(0)
            if time.monotonic() > ends - 30:
                not_run.append(f"{part.name}: no time was left")
            else:
                running.append(Running(part, work))
        running = [one for one in running if not one.ended(ends)]
        time.sleep(0.2)
    return not_run


def collect(work: Path, out: Path, gpus: int, simulated: bool, not_run: list[str]) -> dict[str, Any]:
    """All that lies in the folder of work, from this command or earlier ones."""
    records = sorted(work.glob("*.part"), key=lambda path: path.stat().st_mtime)
    parts = [json.loads(path.read_text()) for path in records]
    for part in parts:
        path = work / f"{part['name']}.json"
        part["checks"] = json.loads(path.read_text()) if path.exists() else None
    bench: dict[str, Any] = {}
    if (work / "bench" / "parts").exists():
        # A bench that was cut off has left its parts, and no table.
        command = ["node", str(ROOT / "dist/cli/main.js"), "bench", "--out", str(work / "bench"), "--gpus", str(gpus)]
        command += ["--subjects", "offload", "--parts", "none of them"]
        subprocess.run(command, stdout=subprocess.DEVNULL, timeout=60, check=False)
        bench = json.loads((work / "bench" / "bench.json").read_text())
        picture = work / "bench" / "bench.svg"
        if picture.exists():
            shutil.copy(picture, out / "many.svg")
    return {"gpus": gpus, "simulated": simulated, "parts": parts, "notRun": not_run, "bench": bench}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--simulated", type=int, metavar="N", help="on so many stand-in GPUs, with tiny models")
    parser.add_argument("--work", type=Path, help="where logs and intermediate results lie (default: OUT/work)")
    parser.add_argument("--seconds", type=float, default=86_400.0, help="then all is ended and reported")
    parser.add_argument("--graphs", default="vllm", help="CUDA graphs of vLLM in the bench; see `baton bench --help`")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds - REPORT_SECONDS
    simulated = options.simulated is not None
    gpus = options.simulated if simulated else gpus_here()
    out, work = options.out.resolve(), (options.work or options.out / "work").resolve()
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    parts = parts_for(gpus, simulated, work, options.graphs)
    unknown = set(options.parts) - {part.name for part in parts}
    if unknown or options.list:
        print(f"parts: {' '.join(part.name for part in parts)}")
        return 2 if unknown else 0
    wanted = [part for part in parts if not options.parts or part.name in options.parts]
    not_run = run_parts(wanted, work, ends)
    found = collect(work, out, gpus, simulated, not_run)
    (out / "many.json").write_text(json.dumps(found, indent=1))
    text, failed = report(found, work)
    (out / "many.md").write_text(text)
    print(text)
    with tarfile.open(out / "logs.tar.gz", "w:gz") as archive:
        for path in sorted(work.rglob("*")):
            if path.is_file() and path.suffix in (".log", ".json", ".jsonl", ".part", ".record", ".recipe"):
                archive.add(path, path.relative_to(work))
    return 1 if failed else 0


def gpus_here() -> int:
    """2, 4 or 8: what there are parts for."""
    import torch

    there = torch.cuda.device_count()
    if there < 2:
        sys.exit(f"many.sh needs 2, 4 or 8 GPUs, and there are {there}; --simulated N takes stand-ins")
    return max(number for number in (2, 4, 8) if number <= there)


if __name__ == "__main__":
    sys.exit(main())
