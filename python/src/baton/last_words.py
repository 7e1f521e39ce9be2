"""A rank that fails before it has joined the run still tells the controller why, so that the run has one clear error.

Until `baton.attach` there is no connection: what goes wrong while the model is built (a GPU that is too small, say)
would only be a traceback among those of the other ranks.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType

from baton.connection import Connection

_installed = False
_joined = False


def install() -> None:
    """From now on an exception that ends the script is told. Does nothing outside of a run."""
    global _installed
    if _installed or not os.environ.get("BATON_SOCKET"):
        return
    _installed = True
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not _joined:
            _tell(error)
        previous(kind, error, trace)

    sys.excepthook = hook


def joined() -> None:
    """This rank has a connection; from now on its session tells what goes wrong."""
    global _joined
    _joined = True


def _tell(error: BaseException) -> None:
    """Never raises: the traceback that follows is then all there is."""
    rank, local_rank = os.environ.get("RANK", ""), os.environ.get("LOCAL_RANK", "")
    if isinstance(error, KeyboardInterrupt) or not (rank.isdigit() and local_rank.isdigit()):
        return
    try:
        Connection.last_words(int(rank), int(local_rank), error, "building the training state")
    except Exception as problem:
        print(f"baton: the controller could not be told: {problem}", file=sys.stderr)
