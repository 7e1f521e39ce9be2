"""`python -m baton.prepare`: builds ahead what is otherwise built at first use, with progress on standard error.

That is the PyTorch allocator, and the extension that DeepSpeed compiles for collectives on the CPU.
"""

from __future__ import annotations

import os
import sys

from baton.building import Building
from baton.errors import BatonError
from baton.extensions import use_own_folder


def prepare() -> None:
    """Builds everything. Raises BatonError when something cannot be built."""
    from baton.training.build import build_allocator

    use_own_folder()
    with Building("PyTorch allocator"):
        build_allocator()
    # The compiler needs a minute and more for it.
    with Building("DeepSpeed's shared-memory collectives"):
        _deepspeed_collectives()


def _deepspeed_collectives() -> object:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
    try:
        from deepspeed.ops.op_builder.cpu.comm import ShareMemCommBuilder
    except ImportError as error:
        raise BatonError(
            "PYTHON_PACKAGE_MISSING",
            f"DeepSpeed cannot be imported: {error}",
            expected="the packages of gpu-baton[training]",
            found=str(error),
            action="Run `baton setup`.",
        ) from error
    try:
        return ShareMemCommBuilder().load(verbose=False)
    except Exception as error:
        raise BatonError(
            "COMPILE_FAILED",
            "DeepSpeed's extension for collectives on the CPU could not be compiled.",
            expected="a C++ compiler, and the package ninja",
            found=f"{type(error).__name__}: {str(error)[:1000]}",
            action="Install g++ and ninja, then run `python -m baton.prepare` again.",
        ) from error


def main() -> int:
    try:
        prepare()
    except BatonError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
