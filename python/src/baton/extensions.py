"""Where DeepSpeed's compiled extensions are kept, and locks that nobody holds any more.

DeepSpeed loads an extension for collectives on the CPU in every process, through a folder that torch shares between
all virtual environments of a user. There two environments compile over and over, each with its own paths; and a
process that is killed while it looks leaves a lock file behind for which every later process waits without end. So
ranks use a folder of their virtual environment, and remove a lock that no process has open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from pathlib import Path

FOLDER = "TORCH_EXTENSIONS_DIR"


def cache_folder() -> Path:
    """Where Baton keeps what it compiles: BATON_CACHE, or the virtual environment's cache, or the user's."""
    named = os.environ.get("BATON_CACHE")
    if named:
        return Path(named)
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        return Path(sys.prefix) / "cache" / "baton"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "baton"


def use_own_folder() -> Path:
    """Names the folder in the environment, unless the user has, and frees it of stale locks."""
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    folder = Path(os.environ.setdefault(FOLDER, str(cache_folder() / "torch_extensions" / python)))
    with contextlib.suppress(OSError):  # a folder that cannot be written is torch's to complain about
        folder.mkdir(parents=True, exist_ok=True)
        remove_stale_locks(folder)
    return folder


def remove_stale_locks(folder: Path) -> list[Path]:
    """Removes the lock files of `folder`'s extensions that no process of this machine has open; returns them.

    torch holds its lock file open while it holds the lock. One process at a time looks, so that none takes away a
    lock that another has just made in place of a stale one.
    """
    if not any(folder.glob("*/lock")):
        return []
    removed: list[Path] = []
    with (folder / ".stale-locks").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        for lock in folder.glob("*/lock"):
            if not _is_open(lock):
                lock.unlink(missing_ok=True)
                removed.append(lock)
    return removed


def _is_open(path: Path) -> bool:
    wanted = str(path.resolve())
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            descriptors = list((process / "fd").iterdir())
        except OSError:
            continue  # ended, or another user's, who has a cache of his own
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                if os.readlink(descriptor) == wanted:
                    return True
    return False
