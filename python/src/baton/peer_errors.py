"""A connection to another rank that broke, told by the texts of gloo, NCCL and torch's store.

Whose end it was they do not say: the rank at the other side, or one that it waited for. The controller looks for it.
"""

from __future__ import annotations

CODE = "PEER_LOST"
#: Of `torch.distributed`; a RuntimeError is one of gloo where it says so.
_CLASSES = frozenset({"DistBackendError", "DistNetworkError", "DistStoreError"})
_SIGNS = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "connection was likely closed",
    "remote process exited",
    "ncclremoteerror",
)


def is_lost_peer(error: BaseException) -> bool:
    text = str(error).lower()
    of_torch = any(kind.__name__ in _CLASSES for kind in type(error).__mro__)
    if not of_torch and not (isinstance(error, RuntimeError) and "gloo" in text):
        return False
    return any(sign in text for sign in _SIGNS)


def failure_of(error: BaseException, doing: str) -> dict[str, str]:
    """The fields of the error."""
    # What follows is general advice, or a trace in C++.
    found = str(error).strip().partition("\n")[0]
    return {
        "code": CODE,
        "message": f"{doing} failed: the connection to another rank is lost",
        "expected": "every rank of the job, until the run is over",
        "found": f"{type(error).__name__}: {found}",
        "action": "Read the output of the other ranks, on every node: one has ended, or their network failed.",
    }
