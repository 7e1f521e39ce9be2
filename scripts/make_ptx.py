"""Compiles native/copy/kernels.cu to native/copy/kernels.ptx with NVRTC, without a CUDA toolkit or a GPU.

    python scripts/make_ptx.py            writes kernels.ptx
    python scripts/make_ptx.py --check    exit status 1 when kernels.ptx is not what kernels.cu gives

NVRTC comes with PyTorch's CUDA wheels (nvidia-cuda-nvrtc); the script looks for libnvrtc.so.* in the
site-packages of the Python that runs it. Where it is missing, or of another release, --check compares the SHA-256 of
the sources that kernels.ptx was made from, which stands in its first lines. Where a ptxas is found (Triton's wheel
carries one), the PTX is assembled for each real architecture too.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

COPY = Path(__file__).resolve().parent.parent / "native" / "copy"
SOURCE = COPY / "kernels.cu"
HEADERS = (COPY / "kernels.h", COPY / "checksum.h", COPY / "rounding.h")
OUTPUT = COPY / "kernels.ptx"

#: The virtual architecture: PTX for it runs on every GPU from Ampere on.
ARCHITECTURE = "compute_80"
#: Newest PTX version that the output may name, so that drivers of CUDA 12.0 (525) and later take it.
PTX_VERSION = "8.0"
ASSEMBLED_FOR = ("sm_80", "sm_90")


def source_digest() -> str:
    """SHA-256 over the kernel source and the headers that it includes, in hexadecimal."""
    digest = hashlib.sha256()
    for path in (SOURCE, *HEADERS):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def site_packages() -> Path:
    return Path(sysconfig.get_paths()["purelib"])


def find_nvrtc() -> Path | None:
    found = sorted((site_packages() / "nvidia").glob("**/libnvrtc.so.*"))
    return found[-1] if found else None


def find_ptxas() -> Path | None:
    found = sorted((site_packages() / "triton").glob("**/bin/ptxas"))
    return found[0] if found else None


class Nvrtc:
    """The few functions of libnvrtc that are needed."""

    def __init__(self, path: Path) -> None:
        # NVRTC opens its builtins by name only; a wheel's folder is on no loader path.
        self._builtins = [ctypes.CDLL(str(each)) for each in path.parent.glob("libnvrtc-builtins.so.*")]
        self._library = ctypes.CDLL(str(path))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def _check(self, result: int, what: str, program: ctypes.c_void_p | None = None) -> None:
        if result == 0:
            return
        text = self._library.nvrtcGetErrorString(result).decode()
        log = self._text("nvrtcGetProgramLog", program) if program else ""
        raise SystemExit(f"{what}: {text}\n{log}")

    def _text(self, function: str, program: ctypes.c_void_p) -> str:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, function + "Size")(program, ctypes.byref(size)), function)
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, function)(program, buffer), function)
        return buffer.value.decode()

    def version(self) -> str:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
        return f"{major.value}.{minor.value}"

    def compile(self, source: str, headers: dict[str, str], options: list[str]) -> str:
        """The PTX of one source; ends the script with the compiler's log when it does not compile."""
        program = ctypes.c_void_p()
        contents = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
        names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
        self._check(
            self._library.nvrtcCreateProgram(
                ctypes.byref(program), source.encode(), b"kernels.cu", len(headers), contents, names
            ),
            "nvrtcCreateProgram",
        )
        arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        self._check(self._library.nvrtcCompileProgram(program, len(options), arguments), "nvrtcCompileProgram", program)
        ptx = self._text("nvrtcGetPTX", program)
        self._library.nvrtcDestroyProgram(ctypes.byref(program))
        return ptx


def lower_version(ptx: str) -> str:
    """Names the oldest PTX version whose instructions the kernels use, not the newest that NVRTC knows.

    A driver refuses PTX of a version newer than itself, whatever is in it; ptxas checks that the text is valid
    as the older version.
    """
    return re.sub(r"^\.version .*$", f".version {PTX_VERSION}", ptx, count=1, flags=re.MULTILINE)


def digest_line() -> str:
    return f"// sources {source_digest()}"


def compiler_line(nvrtc: Nvrtc) -> str:
    return f"// NVRTC {nvrtc.version()}"


def make(nvrtc: Nvrtc) -> str:
    """The whole text of kernels.ptx."""
    headers = {header.name: header.read_text() for header in HEADERS}
    options = [f"--gpu-architecture={ARCHITECTURE}", "--std=c++17"]
    ptx = nvrtc.compile(SOURCE.read_text(), headers, options)
    # What the compiler says about itself (its build and version) would change with every release of it.
    body = "\n".join(line for line in lower_version(ptx).splitlines() if not line.startswith("//")).strip("\n")
    head = ("// Made from kernels.cu by scripts/make_ptx.py; do not edit.", digest_line(), compiler_line(nvrtc))
    return "\n".join((*head, body)) + "\n"


def assemble(ptx: str) -> None:
    """Assembles for each real architecture; ends the script with ptxas' words when one refuses."""
    ptxas = find_ptxas()
    if ptxas is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernels.ptx"
        source.write_text(ptx)
        for architecture in ASSEMBLED_FOR:
            run = subprocess.run(
                [ptxas, "-v", f"-arch={architecture}", source, "-o", Path(folder) / "out"],
                capture_output=True,
                check=False,
                text=True,
                timeout=120,
            )
            if run.returncode != 0:
                raise SystemExit(f"ptxas -arch={architecture}: {run.stderr}")
            for line in run.stderr.splitlines():
                if "registers" in line or "spill" in line:
                    print(f"{architecture}: {line.removeprefix('ptxas info    : ').strip()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with kernels.ptx instead of writing it")
    check: bool = parser.parse_args().check
    stored = OUTPUT.read_text() if OUTPUT.exists() else ""
    path = find_nvrtc()
    nvrtc = Nvrtc(path) if path is not None else None
    if nvrtc is None and not check:
        print("libnvrtc was not found; install nvidia-cuda-nvrtc, or PyTorch with CUDA", file=sys.stderr)
        return 1
    fresh = digest_line() in stored.splitlines()
    if nvrtc is not None:
        ptx = make(nvrtc)
        assemble(ptx)
        if not check:
            OUTPUT.write_text(ptx)
            return 0
        # Another release of NVRTC words the same kernel differently.
        if compiler_line(nvrtc) in stored.splitlines():
            fresh = stored == ptx
    if not fresh:
        print(f"{OUTPUT} is not what {SOURCE.name} gives; run scripts/make_ptx.py", file=sys.stderr)
    return 0 if fresh else 1


if __name__ == "__main__":
    sys.exit(main())
