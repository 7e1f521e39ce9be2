"""The training memory of a rank: a pool that engine and optimizer live in, and that can be given up and taken back.

    with baton.training_memory():
        engine, optimizer, *_ = deepspeed.initialize(...)

It works alone (`TrainingMemory.pause`, `resume`, `wait`); `baton.attach` adds the handoff with a controller.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from baton import joining, native
from baton.errors import BatonError
from baton.training import deepspeed_state, sizes
from baton.training.adapters import engine_weights
from baton.training.arena import ArenaGrowth, own_arena
from baton.training.away import AwayGuard
from baton.training.backends import Backend, choose
from baton.training.deepspeed_support import check_supported
from baton.training.first_step import FirstStep
from baton.training.gate import Gate
from baton.training.holdings import Holding, Holdings, Role
from baton.training.merging import MergedWeights
from baton.training.moves import move_in, move_out, outside
from baton.training.nodes import Nodes, PeerGroup
from baton.training.parking import Parking
from baton.training.peers import PeerPartitions
from baton.training.process_group import let_go_of_barrier
from baton.training.reports import Paused, Returned, Stage
from baton.training.sharing import share

RESUME_DEADLINE_SECONDS = 600.0
#: What comes back behind the forward and backward passes; the gate holds back whoever wants it earlier.
_LATER = (Role.MASTER, Role.MOMENT)


class TrainingMemory:
    """Pausable memory for one engine. One per process, because torch has one allocator."""

    def __init__(
        self, device: int | None = None, *, segment_bytes: int | None = None, weight_bytes: int | None = None
    ) -> None:
        """`device`: the GPU; None: LOCAL_RANK. `segment_bytes`: granularity of release; None: by the size of the
        device and, where it is known, that of the weights."""
        self.device = local_rank() if device is None else device
        self._backend: Backend = choose()
        if segment_bytes is None:
            segment_bytes = sizes.segment_bytes(native.device_memory(self.device)[1], weight_bytes)
        self.pool = native.Pool(self.device, name="training", exportable=True, segment_bytes=segment_bytes)
        self._backend.install(self.pool)
        self._depth = 0
        self._lock = threading.Lock()
        self._engine: Any = None
        self._frozen: Sequence[Any] = ()
        self._first_step: FirstStep | None = None
        self._away_guard = AwayGuard(lambda: self._paused is not None)
        self._holdings = Holdings(())
        self._unknown: list[tuple[int, int]] = []
        self._parking = Parking(self.pool)
        #: What the engine gets of a policy with adapters in place of the weights that they change.
        self.merged: MergedWeights | None = None
        #: What the engines of this node get of the partitions of other nodes.
        self.peers: PeerPartitions | None = None
        #: Ranges of what never changes that one rank of the node keeps in host memory for all.
        self._shared: set[tuple[int, int]] = set()
        self._paused: Stage | None = None
        self._arena: ArenaGrowth | None = None
        self.gate = Gate()
        self.last_return: Returned | None = None
        #: Called once for each resume, when everything is back.
        self.on_return: Callable[[Returned], None] | None = None

    # ---- building ---------------------------------------------------------------------------------------

    def __enter__(self) -> TrainingMemory:
        with self._lock:
            if self._paused is not None:
                raise _wrong_state("open the training memory", "it is paused")
            self._depth += 1
            if self._depth == 1:
                # Torch may reuse free memory that it keeps beside what is parked.
                self._parking.bring_back()
                self._backend.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._backend.close()
                self.pool.trim()

    def attach(self, engine: Any, frozen: Sequence[Any] = ()) -> Holdings:
        """Takes on the engine's state: moves in what is outside, moves out what does not belong, watches its steps.

        Raises BatonError UNSUPPORTED_DEEPSPEED, CANNOT_MOVE_IN or ENGINE_ATTACHED.
        """
        if self._engine is not None and self._engine is not engine:
            raise BatonError(
                "ENGINE_ATTACHED",
                "The training memory has an engine already.",
                expected="one engine a process",
                found="a second one",
                action="Give the modules that are not trained as `frozen`.",
            )
        check_supported(engine)
        self._engine, self._frozen = engine, tuple(frozen)
        if self.merged is None:
            with self:
                self.merged = MergedWeights.of(engine.module)
        if self.peers is None and deepspeed_state.stage_of(engine) == 3:
            self._hold_peers_partitions(engine)
        self.gate.guard(engine)
        let_go_of_barrier()
        holdings = self._adopt()
        self._share_frozen()
        if self._first_step is None:
            self._first_step = FirstStep(engine, self.__enter__, lambda: self.__exit__(None, None, None))
        self._away_guard.remove()
        self._away_guard.watch([engine.module])
        modules = map(deepspeed_state.module_of, self._frozen)
        self._away_guard.watch(modules, lambda: self._parking.holds(self._ranges(Role.REFERENCE)))
        self._declare_worth()
        self._park(Role.MERGED)
        if self._arena is not None:
            self._arena.settle(self.arena_bytes_needed())
        return holdings

    def _hold_peers_partitions(self, engine: Any) -> None:
        """Collective."""
        group = PeerGroup.of(Nodes.find())
        if group is not None:
            with self:
                self.peers = PeerPartitions(list(engine_weights(engine.module)), self.merged, group)

    def _share_frozen(self) -> None:
        """Collective."""
        never_changed = self._holdings.of(Role.FROZEN, Role.REFERENCE)
        taken = [self._backend.taken(held.bytes) for held in never_changed]
        self._shared = share(self.pool, self.device, never_changed, taken)

    def detach(self) -> None:
        """Forgets the engine, so that another can be attached. Its memory stays in the pool until it is freed."""
        self.wait()
        if self._paused is not None:
            raise _wrong_state("detach", "the memory is paused")
        if self._first_step is not None:
            self._first_step.stop()
        self._away_guard.remove()
        self._parking.bring_back()
        self._engine, self._frozen, self._first_step, self._unknown = None, (), None, []
        self._holdings, self.merged, self.peers = Holdings(()), None, None
        self._shared = set()

    @property
    def engine(self) -> Any:
        return self._engine

    @property
    def holdings(self) -> Holdings:
        """The training state as of the last attach or pause."""
        return self._holdings

    @property
    def complete(self) -> bool:
        """Whether all optimizer state exists."""
        return self._first_step is not None and not self._first_step.watching

    @property
    def paused(self) -> Stage | None:
        return self._paused

    def _adopt(self) -> Holdings:
        """Looks at engine and optimizer again; afterwards all their state is in the pool, and nothing else."""
        self._holdings = Holdings(())  # it keeps storages alive that are state no more
        self._backend.settle()
        found = deepspeed_state.training_tensors(self._engine, self._frozen, self.merged, self.peers)
        # Optimizers keep counters on the CPU, and a reference model may live there: nothing to give to an engine.
        holdings = Holdings(label for label in found if label.tensor.device.type in (self._backend.device_type, "cuda"))
        wrong = outside(holdings, self.pool)
        if wrong:
            with self:
                move_in(wrong, self._backend)
        self._unknown, moved = move_out(self.pool, holdings, self._backend)
        if wrong or moved:
            self._backend.settle()
        self.pool.trim()
        self._holdings = holdings
        return holdings

    # ---- the arena --------------------------------------------------------------------------------------

    def take_arena(self) -> None:
        """Saves into the arena that the controller gave this rank, if it did and there is none yet."""
        given = joining.take_arena()
        if given is None:
            return
        try:
            self._arena = ArenaGrowth(self.pool, given.fd, given.capacity_bytes)
        finally:
            os.close(given.fd)

    def arena_bytes_needed(self) -> int:
        """Host memory that a pause needs at most: everything live, and moments that do not exist yet."""
        needed = sum(
            held.bytes
            for held in self._holdings
            if held.role not in (Role.COMMUNICATION, Role.MERGED) and held.range not in self._shared
        )
        needed += sum(size for _, size in self._unknown)
        if self._engine is not None and not self.complete:
            masters = deepspeed_state.masters_of(self._engine)
            needed += 2 * sum(master.numel() * master.element_size() for master in masters)
        return sizes.arena_bytes(needed)

    # ---- pause and resume -------------------------------------------------------------------------------

    def prepare(self) -> Holdings:
        """What must happen before the first stage of a pause: nothing gathered, everything in its place."""
        if self._engine is None:
            raise _wrong_state("pause", "no engine is attached")
        if self._paused is not None:
            return self._holdings
        if getattr(self._engine, "_running_engine_step", False):
            raise _wrong_state("pause", "engine.step() is running")
        self.wait()
        deepspeed_state.let_go_of_gathered(self._engine)
        for other in self._frozen:
            deepspeed_state.let_go_of_gathered(other)
        holdings = self._adopt()
        self._parking.bring_back(self._ranges(Role.MERGED))
        if self.merged is not None:
            self.merged.merge()
        if self.peers is not None:
            self.peers.gather()
        return holdings

    def pause(
        self,
        stage: Stage = "all",
        want_bytes: int | None = None,
        *,
        prepared: bool = False,
    ) -> Paused:
        """Releases memory. "optimizer" keeps what the engine's weights come from, "all" nothing of the state.

        `want_bytes`: stop when so much was released; None: all that the stage allows. May be called again for more.
        Without an arena of the controller's one is made. `prepared`: `prepare` was called just before.
        On failure nothing has changed.
        """
        holdings = self._holdings if prepared else self.prepare()
        if self._arena is None:
            self._arena = own_arena(self.pool)
            self._arena.settle(self.arena_bytes_needed())
        self._declare_worth()
        report = self.pool.pause(
            live=self._backend.live(self.pool),
            keep=[*self._unknown, *(self.engine_ranges() if stage == "optimizer" else ())],
            want_bytes=native.EVERYTHING if want_bytes is None else want_bytes,
        )
        self._paused = stage
        return Paused(
            released_bytes=report.released_bytes,
            saved_bytes=report.saved_bytes,
            clean_bytes=report.clean_bytes,
            dead_bytes=report.dead_bytes,
            kept_bytes=report.kept_bytes,
            outside_bytes=sum(held.bytes for held in outside(holdings, self.pool)),
            seconds=report.total_ns / 1e9,
            simulated_seconds=None if report.simulated_ns is None else report.simulated_ns / 1e9,
        )

    def _declare_worth(self) -> None:
        held = self._holdings
        self._declare(native.FROZEN, held.of(Role.FROZEN, Role.REFERENCE))
        self._declare(native.ZERO, [gradient for gradient in held.of(Role.GRADIENT) if not gradient.live])
        self._declare(native.DISCARD, held.of(Role.COMMUNICATION, Role.MERGED))

    def _declare(self, kind: int, holdings: Sequence[Holding]) -> None:
        self.pool.declare(kind, [(held.address, self._backend.taken(held.bytes)) for held in holdings])

    def engine_ranges(self) -> list[tuple[int, int]]:
        """(address, bytes) of the storages that the engine's weights come from."""
        return [held.range for held in self._holdings.of(Role.PARAMETER, Role.FROZEN, Role.MERGED) if held.for_engine]

    def resume(
        self, *, wait: bool = True, mapped: Callable[[native.ResumeReport], None] | None = None
    ) -> native.ResumeReport:
        """Takes the memory back; with `wait` False masters and moments follow in the background.

        `mapped` is called as soon as the parameters are back. Under ZeRO-3 this is collective.
        """
        if self._paused is None:
            raise _wrong_state("resume", "it is not paused")
        first = [held.range for held in self._holdings if held.role not in _LATER]
        report = self.pool.resume(first=first, leave=self._parking.stay(self._ranges(Role.MERGED)), wait=wait)
        self._paused = None
        if mapped is not None:
            mapped(report)
        if report.pending_bytes:
            self.gate.close(self._finish)
        else:
            self._returned(Returned(report.copied_bytes, 0.0, report.total_ns / 1e9))
        deepspeed_state.gather_persistent_again(self._engine)
        return report

    def stay(self) -> None:
        """What ends a handoff in place of `resume` when nothing had to be released. Under ZeRO-3 this is collective."""
        if self._paused is not None:
            raise _wrong_state("stay", "it is paused")
        self._park(Role.MERGED)
        self._returned(Returned(0, 0.0, 0.0))
        deepspeed_state.gather_persistent_again(self._engine)

    # ---- in its phase only ------------------------------------------------------------------------------

    @contextmanager
    def reference(self) -> Generator[None]:
        """The `frozen` models are on the GPU inside of this block, and then only again after the next resume."""
        if self._paused is not None:
            raise _wrong_state("use the reference model", "the memory is paused")
        self._parking.bring_back(self._ranges(Role.REFERENCE))
        try:
            yield
        finally:
            for other in self._frozen:
                deepspeed_state.let_go_of_gathered(other)
            self.wait()
            self._declare_worth()
            self._park(Role.REFERENCE)

    def _park(self, role: Role) -> None:
        ranges = self._ranges(role)
        if ranges:  # what is live takes torch a while to say
            self._parking.park(ranges, self._backend.live(self.pool))

    def _ranges(self, role: Role) -> list[tuple[int, int]]:
        return [(held.address, self._backend.taken(held.bytes)) for held in self._holdings.of(role)]

    def wait(self) -> Returned | None:
        """Waits until a resume in the background has ended; what it was like, or None when there was none."""
        self.gate.pass_through()
        return self.last_return

    def _finish(self) -> None:
        begin = time.perf_counter()
        report = self.pool.wait(int(RESUME_DEADLINE_SECONDS * 1000))
        self._returned(Returned(report.copied_bytes, time.perf_counter() - begin, report.total_ns / 1e9))

    def _returned(self, how: Returned) -> None:
        self.last_return = how
        if self.on_return is not None:
            self.on_return(how)

    # ---- figures ----------------------------------------------------------------------------------------

    def shared_bytes(self) -> int:
        """Of what never changes: the bytes that this rank has in common with the others of its node."""
        return sum(size for _, size in self._shared)

    def state_bytes(self) -> int:
        """Parameters, masters and moments of this rank by the formula of its ZeRO stage."""
        return deepspeed_state.state_bytes(self._engine)


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _wrong_state(doing: str, found: str) -> BatonError:
    return BatonError(
        "WRONG_STATE",
        f"Cannot {doing} now: {found}.",
        expected="attach, then pause and resume in turn, between optimizer steps",
        found=found,
        action="Call it at another place of the training script.",
    )
