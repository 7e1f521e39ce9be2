"""Stock programs on the stand-in GPUs: nvidia-ml-py reads them, PyTorch and accelerate leave them alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from standin import MIB, Standin, require_build


@pytest.fixture
def standin(tmp_path: Path) -> Standin:
    require_build()
    return Standin(tmp_path, devices=3, device_bytes=64 * MIB)


def answer(standin: Standin, code: str, **more: Any) -> dict[str, object]:
    """Runs `code`, which prints one JSON object as its last line, and says nothing on stderr."""
    done = standin.python(code, **more)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


ALLOCATE = """
import ctypes, json, os, pynvml
cuda = ctypes.CDLL("libcuda.so.1")
context, pointer = ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 1) == 0
assert cuda.cuCtxSetCurrent(context) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(6 << 20)) == 0
"""


def test_nvidia_ml_py_reads_devices_and_versions(standin: Standin) -> None:
    found = answer(
        standin,
        """
import json, pynvml
pynvml.nvmlInit()
handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
uuids = [pynvml.nvmlDeviceGetUUID(h) for h in handles]
pci = [pynvml.nvmlDeviceGetPciInfo(h).busId for h in handles]
print(json.dumps({
    "driver": pynvml.nvmlSystemGetDriverVersion(),
    "cuda": pynvml.nvmlSystemGetCudaDriverVersion(),
    "names": sorted({pynvml.nvmlDeviceGetName(h) for h in handles}),
    "uuids": len(set(uuids)),
    "by_uuid": [pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID(u)) for u in uuids],
    "by_pci": [pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByPciBusId(p)) for p in pci],
    "minors": [pynvml.nvmlDeviceGetMinorNumber(h) for h in handles],
}))
pynvml.nvmlShutdown()
""",
    )
    assert "standin" in str(found["driver"])
    assert found["names"] == ["Baton stand-in GPU"]
    assert found["cuda"] == 13000
    assert found["uuids"] == 3
    assert found["by_uuid"] == found["by_pci"] == found["minors"] == [0, 1, 2]


def test_nvidia_ml_py_reads_memory_and_its_holders(standin: Standin) -> None:
    found = answer(
        standin,
        ALLOCATE
        + """
pynvml.nvmlInit()
handle, other = pynvml.nvmlDeviceGetHandleByIndex(1), pynvml.nvmlDeviceGetHandleByIndex(0)
old, new = pynvml.nvmlDeviceGetMemoryInfo(handle), pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
print(json.dumps({
    "v1": [old.total, old.free, old.used],
    "v2": [new.total, new.free, new.used, new.reserved],
    "mine": [[p.pid == os.getpid(), p.usedGpuMemory] for p in processes],
    "others": len(pynvml.nvmlDeviceGetComputeRunningProcesses(other)),
    "graphics": len(pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle)),
    "other_used": pynvml.nvmlDeviceGetMemoryInfo(other).used,
}))
""",
    )
    assert found["v1"] == [64 * MIB, 58 * MIB, 6 * MIB]
    assert found["v2"] == [64 * MIB, 58 * MIB, 6 * MIB, 0]
    assert found["mine"] == [[True, 6 * MIB]]
    assert found["others"] == found["graphics"] == found["other_used"] == 0


def test_what_a_standin_has_not_is_not_supported(standin: Standin) -> None:
    found = answer(
        standin,
        """
import json, pynvml
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
def refusal(call, *arguments):
    try:
        return repr(call(*arguments))
    except pynvml.NVMLError as error:
        return type(error).__name__
print(json.dumps({
    "load": refusal(pynvml.nvmlDeviceGetUtilizationRates, handle),
    "power": refusal(pynvml.nvmlDeviceGetPowerUsage, handle),
    "clock": refusal(pynvml.nvmlDeviceGetClockInfo, handle, 0),
    "index": refusal(pynvml.nvmlDeviceGetHandleByIndex, 3),
}))
""",
    )
    assert found["load"] == found["power"] == "NVMLError_NotSupported"
    assert found["clock"] == "NVMLError_FunctionNotFound"
    assert found["index"] == "NVMLError_InvalidArgument"


def test_torch_and_accelerate_do_not_take_it_for_cuda(standin: Standin) -> None:
    found = answer(
        standin,
        ALLOCATE
        + """
import torch
from accelerate.utils import is_cuda_available
print(json.dumps({
    "torch": [torch.cuda.is_available(), torch.cuda.device_count()],
    "accelerate": is_cuda_available(),
    "usable": cuda.cuMemFree_v2(pointer) == 0,
}))
""",
    )
    assert found == {"torch": [False, 0], "accelerate": False, "usable": True}


def test_the_runtime_would_find_it_without_the_empty_list(standin: Standin) -> None:
    """What the test above rests on: only CUDA_VISIBLE_DEVICES keeps NVML's devices from PyTorch's count."""
    code = "import json, torch; print(json.dumps({'count': torch.cuda._device_count_nvml()}))"
    assert answer(standin, code)["count"] == 0
    assert answer(standin, code, CUDA_VISIBLE_DEVICES="0,1,2")["count"] == 3


def test_a_forked_worker_reads_nvml(standin: Standin) -> None:
    found = answer(
        standin,
        ALLOCATE
        + """
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(1)
before = pynvml.nvmlDeviceGetMemoryInfo(handle).used
read, write = os.pipe()
if os.fork() == 0:
    text = f"{pynvml.nvmlDeviceGetMemoryInfo(handle).used} {cuda.cuMemFree_v2(pointer)}"
    os.write(write, text.encode())
    os._exit(0)
os.wait()
used, refused = os.read(read, 100).split()
print(json.dumps({"before": before, "used": int(used), "refused": int(refused)}))
""",
    )
    assert found == {"before": 6 * MIB, "used": 6 * MIB, "refused": 3}


def test_baton_counts_the_gpus_of_the_node_without_touching_cuda(standin: Standin) -> None:
    found = answer(
        standin,
        """
import json
from baton import native
count = native.gpu_count()
maps = open("/proc/self/maps").read()
print(json.dumps({"count": count, "nvml": "libnvidia-ml" in maps, "cuda": "libcuda" in maps}))
""",
        CUDA_VISIBLE_DEVICES="1",
    )
    assert found == {"count": 3, "nvml": True, "cuda": False}
