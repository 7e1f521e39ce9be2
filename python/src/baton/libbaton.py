"""libbaton itself: where it is, the C structures and signatures of native/capi/baton.h, and its errors."""

from __future__ import annotations

import ctypes
import json
import os
import platform
from ctypes import POINTER, Structure, c_char, c_char_p, c_int, c_int32, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from baton.errors import BatonError


class DriverInfo(Structure):
    _fields_ = [
        ("available", c_int32),
        ("simulated", c_int32),
        ("driver_version", c_int32),
        ("device_count", c_int32),
        ("path", c_char * 512),
        ("reason", c_char * 512),
    ]


class PoolOptions(Structure):
    _fields_ = [
        ("device", c_int32),
        ("exportable", c_int32),
        ("segment_bytes", c_uint64),
        ("reserve_bytes", c_uint64),
        ("name", c_char * 32),
    ]


def _u64s(*names: str) -> list[tuple[str, type[c_uint64]]]:
    return [(name, c_uint64) for name in names]


class PoolStats(Structure):
    _fields_ = _u64s(
        "base",
        "reserve_bytes",
        "segment_bytes",
        "segments",
        "mapped_segments",
        "mapped_bytes",
        "live_bytes",
        "live_blocks",
        "arena_bytes",
        "arena_used_bytes",
        "pending_bytes",
    )


class PauseReport(Structure):
    _fields_ = _u64s(
        "released_bytes",
        "saved_bytes",
        "clean_bytes",
        "dead_bytes",
        "kept_bytes",
        "copy_ns",
        "total_ns",
        "simulated_ns",
    )


class ResumeReport(Structure):
    _fields_ = _u64s(
        "mapped_bytes", "copied_bytes", "pending_bytes", "verified_bytes", "copy_ns", "total_ns", "simulated_ns"
    )


class CopyReport(Structure):
    _fields_ = _u64s("bytes", "runs", "total_ns", "simulated_ns")


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "baton_version": (c_char_p, []),
    "baton_last_error": (c_char_p, []),
    "baton_driver_probe": (c_int32, [POINTER(DriverInfo)]),
    "baton_gpu_count": (c_int32, [POINTER(c_uint32)]),
    "baton_device_memory": (c_int32, [c_int32, POINTER(c_uint64), POINTER(c_uint64)]),
    "baton_pool_create": (c_int32, [POINTER(PoolOptions), POINTER(c_void_p)]),
    "baton_pool_destroy": (c_int32, [c_void_p]),
    "baton_pool_info": (c_int32, [c_void_p, POINTER(PoolStats)]),
    "baton_pool_allocate": (c_int32, [c_void_p, c_uint64, c_uint64, POINTER(c_uint64)]),
    "baton_pool_free": (c_int32, [c_void_p, c_uint64]),
    "baton_pool_owns": (c_int32, [c_void_p, c_uint64]),
    "baton_pool_blocks": (c_int32, [c_void_p, c_void_p, c_uint64, POINTER(c_uint64)]),
    "baton_pool_trim": (c_int32, [c_void_p, POINTER(c_uint64)]),
    "baton_pool_declare": (c_int32, [c_void_p, c_int32, c_void_p, c_uint64]),
    "baton_pool_verify_frozen": (c_int32, [c_void_p, c_uint64]),
    "baton_pool_set_arena": (c_int32, [c_void_p, c_int, c_uint64, c_uint64]),
    "baton_pool_open_arena": (c_int32, [c_void_p, c_int, c_uint64, c_uint64]),
    "baton_pool_grow_arena": (c_int32, [c_void_p, c_uint64]),
    "baton_pool_open_shared": (c_int32, [c_void_p, c_int32, c_uint64]),
    "baton_pool_write_shared": (c_int32, [c_void_p, c_void_p, c_uint64]),
    "baton_pool_adopt_shared": (c_int32, [c_void_p, c_void_p, c_uint64]),
    "baton_pool_pause": (
        c_int32,
        [c_void_p, c_void_p, c_uint64, c_void_p, c_uint64, c_uint64, POINTER(PauseReport)],
    ),
    "baton_pool_discard": (c_int32, [c_void_p, POINTER(PauseReport)]),
    "baton_pool_resume": (
        c_int32,
        [c_void_p, c_void_p, c_uint64, c_void_p, c_uint64, c_int32, POINTER(ResumeReport)],
    ),
    "baton_pool_wait": (c_int32, [c_void_p, c_uint64, POINTER(ResumeReport)]),
    "baton_pool_export": (c_int32, [c_void_p, c_uint64, POINTER(c_int32)]),
    "baton_import_open": (
        c_int32,
        [c_int32, c_uint64, c_void_p, c_void_p, c_uint64, POINTER(c_void_p), POINTER(c_uint64)],
    ),
    "baton_import_close": (c_int32, [c_void_p]),
    "baton_copy_plan_create": (c_int32, [c_int32, c_void_p, c_uint64, POINTER(c_void_p)]),
    "baton_copy_plan_execute": (c_int32, [c_void_p, c_void_p, c_uint64, POINTER(CopyReport)]),
    "baton_copy_plan_destroy": (c_int32, [c_void_p]),
    "baton_kernels_load": (c_int32, [c_int32]),
    "baton_checksum": (c_int32, [c_int32, c_void_p, c_uint64, c_int32, c_void_p, c_uint64]),
    "baton_torch_cuda_install": (c_int32, [c_void_p]),
    "baton_watchdog_start": (c_int32, [c_int32, c_uint64]),
}


def library_path() -> Path:
    """Where libbaton.so is: BATON_LIBRARY, or the build or prebuilt folder of the package that holds this file.

    Raises BatonError NATIVE_LIBRARY_MISSING.
    """
    named = os.environ.get("BATON_LIBRARY")
    if named:
        candidates = [Path(named)]
    else:
        root = Path(__file__).resolve().parents[3]
        arch = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
        candidates = [root / "build/Release/libbaton.so", root / f"prebuilds/linux-{arch}/libbaton.so"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise BatonError(
        "NATIVE_LIBRARY_MISSING",
        "libbaton.so was not found.",
        expected="BATON_LIBRARY (set by `baton run`), or a built checkout",
        found="no file at " + ", ".join(map(str, candidates)),
        action="Start the script with `baton run … -- COMMAND`, or run `npm install` in the checkout.",
    )


@cache
def library() -> ctypes.CDLL:
    """The loaded library, its signatures declared. Loaded once per process, symbols visible to the torch shim."""
    path = library_path()
    try:
        loaded = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise BatonError(
            "NATIVE_LIBRARY_BROKEN",
            f"{path} cannot be loaded: {error}",
            expected="the libbaton that belongs to this Python package",
            found=str(error),
            action="Build again with `npm install`, or reinstall the package.",
        ) from error
    return loaded


def check(status: int) -> None:
    """Raises the BatonError that the last failed call of this thread left behind, when `status` is not 0."""
    if status == 0:
        return
    text = library().baton_last_error() or b""
    try:
        failure = json.loads(text)
    except ValueError:
        failure = {"code": "NATIVE_ERROR", "message": f"libbaton failed with status {status}.", "found": str(text)}
    raise BatonError.from_wire(failure)
