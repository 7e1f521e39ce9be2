"""Builds the small library that puts PyTorch's CPU allocations into a pool, against the torch that is installed.

PyTorch promises no stable C++ ABI, so the library cannot be shipped ready. It takes a few seconds to build, once for
each torch version and source, and is kept in a cache folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from baton.errors import BatonError
from baton.extensions import cache_folder

LOCK_DEADLINE_SECONDS = 300.0
COMPILE_DEADLINE_SECONDS = 280.0


def source_folder() -> Path:
    """The folder with the C++ sources and, next to it, capi/baton.h. Raises BatonError SHIM_SOURCE_MISSING."""
    folder = Path(__file__).resolve().parents[4] / "native" / "torch"
    if not folder.is_dir():
        raise BatonError(
            "SHIM_SOURCE_MISSING",
            "The sources of the PyTorch allocator are missing.",
            expected=f"a folder {folder}",
            found="nothing there",
            action="Reinstall the gpu-baton package.",
        )
    return folder


def build_allocator() -> Path:
    """Path of the built library; builds it when the cache has none for this torch and these sources.

    Raises BatonError NO_COMPILER, COMPILE_FAILED or BUILD_LOCKED.
    """
    import torch

    torch_folder = Path(torch.__file__).parent
    sources = sorted(source_folder().glob("*.cc"))
    flags = [
        "-std=c++20",
        "-O2",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    ]
    key = hashlib.sha256()
    for part in (torch.__version__, platform.machine(), *flags):
        key.update(part.encode() + b"\0")
    headers = sorted([*source_folder().glob("*.h"), source_folder().parent / "capi" / "baton.h"])
    for path in (*sources, *headers):
        key.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    folder = cache_folder()
    target = folder / f"libbaton_torch-{torch.__version__}-{key.hexdigest()[:16]}.so"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "build.lock"):
        if target.is_file():
            return target
        _compile(sources, flags, torch_folder, target)
    return target


def _compiler() -> str:
    wanted = os.environ.get("CXX")
    candidates = [wanted] if wanted else ["c++", "g++", "clang++"]
    for candidate in candidates:
        found = shutil.which(candidate)
        if found:
            return found
    raise BatonError(
        "NO_COMPILER",
        "The PyTorch allocator must be compiled once, and there is no C++ compiler.",
        expected="a C++20 compiler: " + ", ".join(candidates),
        found="none of them on PATH",
        action="Install g++ (Debian, Ubuntu: `apt install g++`), or set CXX, and run `python -m baton.prepare`.",
    )


def _compile(sources: list[Path], flags: list[str], torch_folder: Path, target: Path) -> None:
    compiler = _compiler()
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".tmp")
    os.close(handle)
    command = [
        compiler,
        *flags,
        f"-I{torch_folder / 'include'}",
        f"-I{source_folder().parent}",
        *map(str, sources),
        f"-L{torch_folder / 'lib'}",
        "-lc10",
        "-o",
        temporary,
    ]
    try:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=COMPILE_DEADLINE_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise _compile_failed(command, f"no end after {COMPILE_DEADLINE_SECONDS:.0f} s") from error
        if done.returncode != 0:
            raise _compile_failed(command, (done.stderr or done.stdout).strip()[:2000])
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _compile_failed(command: list[str], found: str) -> BatonError:
    return BatonError(
        "COMPILE_FAILED",
        "The PyTorch allocator could not be compiled.",
        expected="exit status 0 of: " + " ".join(command),
        found=found,
        action="A C++20 compiler is needed (g++ 11 or clang 14 and later); CXX names another one.",
    )


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Holds an exclusive lock on `path`, so that the ranks of a node build once."""
    with path.open("w") as file:
        deadline = time.monotonic() + LOCK_DEADLINE_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BatonError(
                        "BUILD_LOCKED",
                        "Another process has been building the PyTorch allocator for too long.",
                        expected=f"the lock {path} within {LOCK_DEADLINE_SECONDS:.0f} s",
                        found="it is still held",
                        action="End the process that holds it, then try again.",
                    ) from None
                time.sleep(0.05)
        yield
