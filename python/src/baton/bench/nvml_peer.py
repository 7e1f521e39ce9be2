"""The peer of the sampler benchmark: nvidia-ml-py in a loop.

    python -m baton.bench.nvml_peer HZ SECONDS

Prints one JSON line: {"cpuPercentPerGpu": CPU time of this process over wall time, in percent of a core}.
"""

from __future__ import annotations

import json
import sys
import time

import pynvml


def main(hz: float, seconds: float) -> None:
    """Reads the memory totals of every GPU `hz` times a second, and the process lists twice a second."""
    pynvml.nvmlInit()
    devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    start, cpu = time.monotonic(), time.process_time()
    tick, lists = start, start
    while (now := time.monotonic()) - start < seconds:
        for device in devices:
            pynvml.nvmlDeviceGetMemoryInfo(device)
        if now >= lists:
            lists = now + 0.5
            for device in devices:
                pynvml.nvmlDeviceGetComputeRunningProcesses(device)
        tick += 1 / hz
        time.sleep(max(0.0, tick - time.monotonic()))
    used = (time.process_time() - cpu) / (time.monotonic() - start)
    print(json.dumps({"cpuPercentPerGpu": 100 * used / len(devices)}), flush=True)
    pynvml.nvmlShutdown()


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]))
