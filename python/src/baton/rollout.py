"""One rollout: the handoff of this rank's GPU to the engines, generation, and the way back."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt

from baton import faults, native
from baton.completion import Completion, Sampling, U32s, completions_from, prompt_array
from baton.connection import Connection, unexpected
from baton.errors import BatonError
from baton.protocol import arrays
from baton.protocol.frames import MAX_DESCRIPTORS
from baton.protocol.messages import (
    Arrive,
    Completions,
    Exported,
    ExportSegments,
    Leave,
    LogprobCheck,
    Opened,
    Prompts,
    Release,
    Released,
    Resume,
    Resumed,
)
from baton.training import logprobs
from baton.training.deepspeed_state import stage_of
from baton.training.logprobs import Sampled
from baton.training.manifest import Weights
from baton.training.memory import TrainingMemory
from baton.weights.checksums import NOT_ASKED, Checksums

PromptIds = Sequence[int] | npt.NDArray[np.integer]


class Rollout:
    """The time in which the engines have the GPUs, as a context. Made by `Session.rollout`."""

    def __init__(self, connection: Connection, memory: TrainingMemory, announce: Callable[[], Weights]) -> None:
        """`announce` sees to it that the controller knows where the weights lie, and returns that."""
        self._connection = connection
        self._memory = memory
        self._announce = announce
        self._calls = 0
        self._sampled: list[Sampled] = []
        self._epoch = 0
        #: Summed with those of other nodes, before the handoff: all nodes do it then, whatever each is asked for.
        self._sums: Checksums | None = None
        self.open = False
        self._ended = False

    @property
    def weight_epoch(self) -> int:
        """The optimizer step whose weights the engines have."""
        return self._epoch

    def __enter__(self) -> Rollout:
        self.open = True
        try:
            self._memory.prepare()
            weights = self._announce()
            if self._memory.peers is not None:
                self._sums = weights.checksums(self._memory)
            self._epoch = int(self._memory.engine.global_steps)
            self._connection.send(Arrive(epoch=self._epoch))
            self._serve_until_opened(weights)
        except BaseException as error:
            self._connection.fail(error, "handing the GPUs over")
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self._ended = True
        self.open = False
        if error is not None:
            self._connection.fail(error, "the rollout", away=True)
            return False
        try:
            self._connection.send(Leave())
            message, _ = self._connection.expect(Resume)
            self._take_back(message.seq)
            self._check_logprobs()
        except BaseException as problem:
            # A kernel of the block may have failed: CUDA says so at the next call.
            self._connection.fail(problem, "taking the GPUs back", away=True)
            raise
        return False

    def generate(self, prompt_token_ids: Sequence[PromptIds], sampling: Sampling) -> list[Completion]:
        """`sampling.n` completions of each prompt, ordered by prompt, then by sample.

        Collective over the ranks whose GPUs belong to the same engine: all give the same sampling parameters, and
        each gets the completions of its own prompts. No prompts at all are fine.
        Raises BatonError ROLLOUT_CLOSED outside of the `with` block, BAD_PROMPT.
        """
        if not self.open:
            raise BatonError(
                "ROLLOUT_CLOSED",
                "generate() was called outside of its rollout, where no engine has the GPUs.",
                expected="a call inside of the block `with session.rollout() as rollout:`",
                found="a call after the block" if self._ended else "a call before the block",
                action="Move the call into the block; for more completions later, open another session.rollout().",
            )
        prompts = [prompt_array(prompt, position) for position, prompt in enumerate(prompt_token_ids)]
        sent = prompts[::-1] if faults.hit("rank.prompts.swap") else prompts
        call = self._calls
        self._calls += 1
        self._connection.send(
            Prompts(
                call=call,
                tokens=arrays.binary_u32(np.concatenate(sent) if sent else np.zeros(0, dtype=np.uint32)),
                lengths=arrays.binary_u32([prompt.size for prompt in sent]),
                sampling=sampling.to_wire(),
            )
        )
        message, _ = self._connection.expect(Completions)
        self._check_answer(message, call)
        completions = completions_from(message, len(prompts), sampling.n)
        self._remember(prompts, completions, sampling.temperature)
        return completions

    # ---- the handoff ------------------------------------------------------------------------------------

    def _serve_until_opened(self, weights: Weights) -> None:
        while True:
            message, descriptors = self._connection.receive()
            for fd in descriptors:
                os.close(fd)
            if isinstance(message, Release):
                self._release(message)
            elif isinstance(message, ExportSegments):
                self._export(message, weights)
            elif isinstance(message, Opened):
                if message.epoch != self._epoch:
                    raise _stale(self._epoch, f"an engine that is open with the weights of step {message.epoch}")
                return
            else:
                raise unexpected(message, (Release, ExportSegments, Opened))

    def _release(self, message: Release) -> None:
        paused = self._memory.pause(message.stage, message.want_bytes, prepared=True)
        self._connection.send(
            Released(
                seq=message.seq,
                released_bytes=paused.released_bytes,
                saved_bytes=paused.saved_bytes,
                clean_bytes=paused.clean_bytes,
                dead_bytes=paused.dead_bytes,
                kept_bytes=paused.kept_bytes,
                outside_bytes=paused.outside_bytes,
                seconds=paused.seconds,
                simulated_seconds=paused.simulated_seconds,
            )
        )

    def _export(self, message: ExportSegments, weights: Weights) -> None:
        """Sends the descriptors, as many as fit a frame at a time, and closes them: an open one holds memory."""
        segments = arrays.u64s(message.segments, "segments")
        sums = self._sums
        if sums is None and message.checksums:
            sums = weights.checksums(self._memory)
        asked = sums.on_the_wire() if sums is not None and message.checksums else NOT_ASKED
        for begin in range(0, max(segments.size, 1), MAX_DESCRIPTORS):
            part = segments[begin : begin + MAX_DESCRIPTORS]
            last = begin + part.size >= segments.size
            descriptors: list[int] = []
            try:
                descriptors.extend(self._memory.pool.export(int(segment)) for segment in part)
                self._connection.send(
                    Exported(
                        seq=message.seq,
                        segments=arrays.binary_u64(part),
                        last=last,
                        **(asked if last else NOT_ASKED),
                    ),
                    descriptors,
                )
            finally:
                for fd in descriptors:
                    os.close(fd)

    def _take_back(self, seq: int) -> None:
        if self._memory.paused is not None:
            self._memory.resume(wait=False, mapped=lambda report: self._send_resumed(seq, report))
            return
        # The engine fitted beside everything, so nothing was asked for (release: needed).
        simulated = 0.0 if self._connection.welcome.simulated else None
        self._connection.send(
            Resumed(seq=seq, copied_bytes=0, pending_bytes=0, seconds=0.0, simulated_seconds=simulated)
        )
        self._memory.stay()

    def _send_resumed(self, seq: int, report: native.ResumeReport) -> None:
        self._connection.send(
            Resumed(
                seq=seq,
                copied_bytes=report.copied_bytes,
                pending_bytes=report.pending_bytes,
                seconds=report.total_ns / 1e9,
                simulated_seconds=None if report.simulated_ns is None else report.simulated_ns / 1e9,
            )
        )

    # ---- checks -----------------------------------------------------------------------------------------

    def _check_answer(self, message: Completions, call: int) -> None:
        if message.epoch != self._epoch:
            raise _stale(self._epoch, f"completions made with the weights of step {message.epoch}")
        if message.call != call:
            raise BatonError(
                "PROTOCOL_ERROR",
                "The completions answer another call.",
                expected=f"call {call}",
                found=f"call {message.call}",
                action="Call generate() equally often on every rank.",
            )

    def _remember(self, prompts: list[U32s], completions: list[Completion], temperature: float) -> None:
        """Keeps the first completions of this rollout for the comparison of logprobs."""
        room = self._connection.welcome.logprob_sequences - len(self._sampled)
        for completion in completions[: max(room, 0)]:
            self._sampled.append(Sampled(prompts[completion.prompt], completion, temperature))

    def _check_logprobs(self) -> None:
        welcome = self._connection.welcome
        if welcome.logprob_sequences == 0:
            return
        engine = self._memory.engine
        found = logprobs.compare(engine.module, self._sampled, collective=stage_of(engine) == 3)
        self._connection.send(
            LogprobCheck(
                epoch=self._epoch,
                tokens=found.tokens,
                max_difference=found.largest,
                mean_difference=found.mean,
            )
        )


def _stale(epoch: int, found: str) -> BatonError:
    return BatonError(
        "STALE_WEIGHTS",
        "The engine does not have the weights of the last optimizer step.",
        expected=f"weights of step {epoch}",
        found=found,
        action="This is a fault of Baton or of the engine; the run cannot be trusted.",
    )
