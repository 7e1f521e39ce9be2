"""What engine workers import must stay light."""

from __future__ import annotations

import subprocess
import sys


def test_the_protocol_needs_only_msgspec_and_numpy() -> None:
    program = """
import sys
import baton.protocol.frames, baton.protocol.arrays, baton.protocol.messages
# numpy imports typing_extensions where it is installed
allowed = {"baton", "msgspec", "numpy", "typing_extensions"} | set(sys.stdlib_module_names)
print(sorted({name.split(".")[0] for name, module in sys.modules.items()
              if getattr(module, "__file__", None)} - allowed - {"__main__"}))
"""
    # -S: without site-packages' start-up files, which import what they like.
    paths = [path for path in sys.path if path]
    result = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {paths!r}\n{program}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout.strip() == "[]"
