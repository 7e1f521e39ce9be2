"""The connection of a client (rank, engine, worker) to the controller that started it.

Every wait has a deadline: the longest silence that the controller allows itself, which it states in its welcome. A
ping counts as a sign of life and is answered here. The connection belongs to the process that opened it: a forked
child (of a data loader, say) lets go of it at once and gets an error when it tries to use it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

import msgspec

import baton
from baton import native
from baton.errors import BatonError
from baton.protocol.frames import FrameSocket
from baton.protocol.messages import (
    PROTOCOL_VERSION,
    Failed,
    Failure,
    FromClient,
    FromController,
    Goodbye,
    Hello,
    Ping,
    Pong,
    Shutdown,
    Welcome,
)

CONNECT_DEADLINE_SECONDS = 10.0
#: A rank gets its welcome when every engine has started. The controller, which ends what takes too long, says how
#: long that may be (BATON_START_SECONDS); this is for when it does not.
WELCOME_DEADLINE_SECONDS = 900.0
FAREWELL_DEADLINE_SECONDS = 2.0

Role = Literal["rank", "engine", "worker"]
_Message = TypeVar("_Message", bound=msgspec.Struct)


@dataclass(frozen=True)
class Controller:
    """The controller of this run, as it told its children through the environment."""

    socket_path: str
    token: str
    pid: int | None
    start_time: int | None

    @classmethod
    def from_environment(cls) -> Controller:
        """Raises BatonError NO_CONTROLLER when this process was not started by `baton run`."""
        path, token = os.environ.get("BATON_SOCKET"), os.environ.get("BATON_TOKEN")
        if not path or not token:
            raise BatonError(
                "NO_CONTROLLER",
                "This process was not started by Baton's controller.",
                expected="BATON_SOCKET and BATON_TOKEN in the environment",
                found=", ".join(name for name in ("BATON_SOCKET", "BATON_TOKEN") if not os.environ.get(name))
                + " missing",
                action="Start the script with `baton run RECIPE.yaml -- COMMAND` (any launcher).",
            )
        pid, start = os.environ.get("BATON_CONTROLLER_PID"), os.environ.get("BATON_CONTROLLER_START")
        return cls(path, token, int(pid) if pid else None, int(start) if start else None)


class Connection:
    """Frames to and from the controller. Messages are the structs of `baton.protocol.messages`.

    One thread at a time may receive; sending is safe from any thread.
    """

    def __init__(self, frames: FrameSocket[FromController], welcome: Welcome) -> None:
        self._frames = frames
        self._pid = os.getpid()
        self._forked = False
        self._sending = threading.Lock()
        self._closed = False
        self.welcome = welcome
        self.silence_seconds = welcome.silence_seconds
        self_reference = weakref.ref(self)

        def let_go_in_child() -> None:
            connection = self_reference()
            if connection is not None:
                connection._forked = True
                connection._frames.close()

        os.register_at_fork(after_in_child=let_go_in_child)

    @classmethod
    def open(
        cls,
        role: Role,
        index: int,
        *,
        gpu: int | None = None,
        engine: int | None = None,
        local_rank: int | None = None,
        world_size: int | None = None,
        local_world_size: int | None = None,
    ) -> Connection:
        """Connects, ties this process's life to the controller's, says hello and waits for the welcome.

        Raises BatonError NO_CONTROLLER, CANNOT_CONNECT, DEADLINE, CONNECTION_LOST, or what the controller answers.
        """
        frames = cls._hello(
            role,
            index,
            gpu=gpu,
            engine=engine,
            local_rank=local_rank,
            world_size=world_size,
            local_world_size=local_world_size,
        )
        try:
            answer, _ = frames.receive(float(os.environ.get("BATON_START_SECONDS") or WELCOME_DEADLINE_SECONDS))
            if isinstance(answer, Shutdown):
                raise _ended(answer)
            if not isinstance(answer, Welcome):
                raise unexpected(answer, (Welcome,))
        except BaseException:
            frames.close()
            raise
        return cls(frames, answer)

    @classmethod
    def decline(cls, error: BaseException, doing: str, role: Role, index: int, **who: int) -> None:
        """Says hello and why this process will not take part, without waiting for the welcome, which comes when the
        engines have started. `who`: as in `open`. Never raises."""
        with suppress(BatonError, OSError):
            frames = cls._hello(role, index, **who)
            try:
                frames.send(_failed(error, doing), (), FAREWELL_DEADLINE_SECONDS)
            finally:
                frames.close()

    @staticmethod
    def _hello(
        role: Role,
        index: int,
        *,
        gpu: int | None = None,
        engine: int | None = None,
        local_rank: int | None = None,
        world_size: int | None = None,
        local_world_size: int | None = None,
    ) -> FrameSocket[FromController]:
        """Connects, ties this process's life to the controller's and says who it is."""
        controller = Controller.from_environment()
        if controller.pid is not None and controller.start_time is not None:
            native.watchdog_start(controller.pid, controller.start_time)
        frames = FrameSocket[FromController].connect(controller.socket_path, CONNECT_DEADLINE_SECONDS)
        try:
            frames.send(
                Hello(
                    protocol=PROTOCOL_VERSION,
                    token=controller.token,
                    role=role,
                    pid=os.getpid(),
                    index=index,
                    local_rank=local_rank,
                    world_size=world_size,
                    local_world_size=local_world_size,
                    engine=engine,
                    gpu=gpu,
                    version=baton.__version__,
                )
            )
        except BaseException:
            frames.close()
            raise
        return frames

    @property
    def closed(self) -> bool:
        """Whether this process has closed it, or is a fork of the one that opened it."""
        return self._closed or os.getpid() != self._pid

    def fileno(self) -> int:
        return self._frames.fileno()

    def send(self, message: FromClient, descriptors: Sequence[int] = ()) -> None:
        """Sends one frame; the descriptors stay the caller's. Raises BatonError when the controller is gone."""
        self._check_owner()
        with self._sending:
            self._frames.send(message, descriptors, self.silence_seconds)

    def receive(self, deadline_seconds: float | None = None) -> tuple[FromController, list[int]]:
        """The next message that is not a ping, with its descriptors (the caller's to close).

        Waits until the controller has been silent for `deadline_seconds` (None: what it promised in its welcome).
        Raises BatonError DEADLINE, CONNECTION_LOST, PROTOCOL_ERROR, or the failure that ended the run.
        """
        self._check_owner()
        deadline = self.silence_seconds if deadline_seconds is None else deadline_seconds
        while True:
            message, descriptors = self._frames.receive(deadline)
            if isinstance(message, Ping):
                self.send(Pong(seq=message.seq))
            elif isinstance(message, Shutdown):
                raise _ended(message)
            else:
                return message, descriptors

    def expect(
        self, kind: type[_Message], *, descriptors: int = 0, deadline_seconds: float | None = None
    ) -> tuple[_Message, list[int]]:
        """Like `receive`, for a place where only one kind of message makes sense."""
        message, found = self.receive(deadline_seconds)
        if not isinstance(message, kind) or len(found) != descriptors:
            for fd in found:
                os.close(fd)
            raise unexpected(message, (kind,))
        return message, found

    def fail(self, error: BaseException, doing: str, *, away: bool = False) -> None:
        """Tells the controller why this process gives up, if it can still be told. Never raises.

        `away`: training state was given back for a rollout while it did what failed.
        """
        self._farewell(_failed(error, doing, away=away))

    def close(self) -> None:
        """Says goodbye and closes. Safe to call again, and in a forked child."""
        self._farewell(Goodbye())

    def _farewell(self, message: FromClient) -> None:
        if self._closed or self._forked:
            return
        self._closed = True
        try:
            with self._sending:
                self._frames.send(message, (), FAREWELL_DEADLINE_SECONDS)
        except (BatonError, OSError):
            pass  # the controller is gone, or does not listen: it learns of our end from the pidfd
        finally:
            self._frames.close()

    def _check_owner(self) -> None:
        if self._forked:
            raise BatonError(
                "FORKED_CLIENT",
                "The connection to the controller was used in a forked child.",
                expected=f"process {self._pid}",
                found=f"process {os.getpid()}",
                action="Talk to Baton in the training process only, not in data loader workers.",
            )
        if self._closed:
            raise BatonError(
                "CONNECTION_CLOSED",
                "The connection to the controller has been closed by this process.",
                expected="no use after finish()",
                found="another call",
                action="Call session.finish() last.",
            )


def _failed(error: BaseException, doing: str, *, away: bool = False) -> Failed:
    return Failed(failure=Failure(**BatonError.from_exception(error, doing, away=away).to_wire()))


def unexpected(message: object, expected: Sequence[type]) -> BatonError:
    """A message at a place where it makes no sense."""
    return BatonError(
        "PROTOCOL_ERROR",
        f"The controller sent {type(message).__name__} where it makes no sense.",
        expected=" or ".join(kind.__name__ for kind in expected),
        found=type(message).__name__,
        action="Use the same version of Baton everywhere; if it is, please report this.",
    )


def _ended(message: Shutdown) -> BatonError:
    if message.failure is not None:
        return BatonError.from_wire({name: getattr(message.failure, name) for name in Failure.__struct_fields__})
    return BatonError(
        "RUN_ENDED",
        "The controller has ended the run.",
        expected="the run to go on",
        found="an orderly shutdown",
        action="Nothing, if you ended it; else see the controller's output.",
    )
