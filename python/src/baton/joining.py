"""How a rank joins the run that `baton run` has started: one connection a process.

It joins when it first asks for training memory, and is let in when no engine is starting any more: an engine that
starts takes all its memory, and so does a model that is being built. From then on whatever ends the script is told to
the controller, so that the run has one clear error and not only a traceback among those of the other ranks.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from baton.connection import Connection
from baton.errors import BatonError
from baton.protocol.messages import Arena


@dataclass(frozen=True)
class ArenaGiven:
    """Host memory that the controller keeps for this rank: a memfd, and how large it may grow."""

    fd: int
    capacity_bytes: int


_connection: Connection | None = None
_arena: ArenaGiven | None = None
_weight_bytes: int | None = None
_hooked = False
_attached = False
_interrupted = False
_finish: Callable[[], None] | None = None


def join(gpu: int) -> Connection:
    """The connection of this rank, which computes on `gpu`; opened by the first call.

    Raises BatonError NOT_LAUNCHED, NO_CONTROLLER, CANNOT_CONNECT, DEADLINE, or what the controller answers.
    """
    global _connection, _arena, _weight_bytes
    if _connection is None or _connection.closed:
        _connection = Connection.open("rank", _environment("RANK"), gpu=gpu, **_place())
        _hook_exceptions()
        _enable_faulthandler()
        message, (fd,) = _connection.expect(Arena, descriptors=1)
        _arena = ArenaGiven(fd, message.arena_bytes)
        _weight_bytes = message.weight_bytes
    return _connection


def decline(gpu: int, error: BatonError) -> None:
    """Tells the controller why this rank will not join, without waiting for the engines. Outside of a run, nothing."""
    if _connection is None and _is_rank_of_a_run():
        Connection.decline(error, "the training script", "rank", _environment("RANK"), gpu=gpu, **_place())


def _is_rank_of_a_run() -> bool:
    return bool(os.environ.get("BATON_SOCKET")) and os.environ.get("RANK", "").isdigit()


def _place() -> dict[str, int]:
    """Where this rank is among the others, by the launcher's environment."""
    names = ("LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    return {name.lower(): _environment(name) for name in names}


def take_arena() -> ArenaGiven | None:
    """The arena that came with the welcome, once; its descriptor is the caller's to close then."""
    global _arena
    arena, _arena = _arena, None
    return arena


def weight_bytes() -> int | None:
    """What the weights take as an engine holds them, in bytes; None before the rank has joined and where no engine
    is."""
    return _weight_bytes


def join_early(gpu: int) -> None:
    """Like `join`, but does nothing outside of a run, where training memory works alone."""
    if _is_rank_of_a_run():
        join(gpu)


def attached() -> None:
    """The script has called `baton.attach`: what it owes now is `session.finish()`."""
    global _attached
    _attached = True


def finish_at_exit(finish: Callable[[], None]) -> None:
    """Instead of an error about a missing `session.finish()`, call it when the script ends in good order.

    For trainers whose scripts know nothing of Baton, and may evaluate or save after the training.
    """
    global _finish
    _finish = finish


def _hook_exceptions() -> None:
    """An exception that ends the script is told to the controller before its traceback is printed.

    So is an end without `session.finish()`: otherwise a script that just stops would look like one that is done.
    """
    global _hooked
    if _hooked:
        return
    _hooked = True
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        global _interrupted
        if isinstance(error, KeyboardInterrupt):
            _interrupted = True
        elif _connection is not None:
            _connection.fail(error, "the training script")
        previous(kind, error, trace)

    sys.excepthook = hook
    atexit.register(_leave)


def _enable_faulthandler() -> None:
    """A rank that reads training state while it is away dies by a signal: the log shall have the line that did it."""
    if faulthandler.is_enabled():
        return
    with suppress(AttributeError, OSError, RuntimeError, ValueError):  # a stderr that is no file
        faulthandler.enable()


def _leave() -> None:
    """At the end of the interpreter. Whoever was interrupted says nothing: the controller was too, and says so."""
    global _finish
    if _connection is None or _connection.closed or _interrupted:
        return
    finish, _finish = _finish, None
    if finish is not None:
        finish()
        return
    owed = "session.finish()" if _attached else "baton.attach(engine)"
    error = BatonError(
        "RANK_LEFT",
        f"The script ended without {owed}, so the run has not reached its end.",
        expected="session.finish() at the end of the script, on every rank"
        if _attached
        else "baton.attach(engine) after the training memory, and session.finish() at the end of the script",
        found=f"the script ended without {owed}",
        action=f"Call {owed}, and look for a return or sys.exit() that comes before it.",
    )
    _connection.fail(error, "the training script")


def _environment(name: str) -> int:
    """A number that every launcher sets. Raises BatonError NOT_LAUNCHED."""
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise BatonError(
            "NOT_LAUNCHED",
            f"{name} is not set, so this is not a training rank.",
            expected="RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE in the environment",
            found=f"{name}={value!r}",
            action="Start the script with torchrun, accelerate launch or python -m torch.distributed.run.",
        )
    return int(value)
