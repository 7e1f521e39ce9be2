"""`import baton.trl` with no TRL, with another TRL, and with the right one, as pip leaves their metadata."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import baton

#: What an interpreter does that knows the packages of `folder` alone, and Baton.
SCRIPT = """
import sys
sys.path = [path for path in sys.path if "packages" not in path] + sys.argv[1:]
try:
    import baton.trl
except ModuleNotFoundError as error:
    print("needs", error.name)
except Exception as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (None, ("PYTHON_PACKAGE_MISSING: ", "no package trl", "pip install 'trl==1.16.*'")),
        ("1.17.0", ("UNSUPPORTED_TRL: ", "TRL 1.16.x", "TRL 1.17.0")),
        ("1.1.6", ("UNSUPPORTED_TRL: ", "TRL 1.16.x", "TRL 1.1.6")),
        ("2.16.1", ("UNSUPPORTED_TRL: ", "TRL 1.16.x", "TRL 2.16.1")),
        # The next thing that this interpreter lacks.
        ("1.16.3", ("needs torch",)),
    ],
)
def test_another_trl_is_refused_by_name(version: str | None, said: tuple[str, ...], tmp_path: Path) -> None:
    if version is not None:
        metadata = tmp_path / f"trl-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: trl\nVersion: {version}\n")
    folders = [str(tmp_path), str(Path(baton.__file__).parents[1])]
    made = subprocess.run([sys.executable, "-S", "-c", SCRIPT, *folders], capture_output=True, text=True, timeout=60)
    for words in said:
        assert words in made.stdout, made.stdout + made.stderr
