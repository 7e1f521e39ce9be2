"""A rank with DeepSpeed, step by step through its handoffs, against a controller that the test plays."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extent import only_in_all
from peer import Peer, memfd, welcome
from standin import Standin, require_build

from baton.protocol import arrays
from baton.protocol.messages import (
    Arena,
    Arrive,
    Completions,
    Exported,
    ExportSegments,
    Failed,
    Goodbye,
    Leave,
    LogprobCheck,
    Manifest,
    Metrics,
    Opened,
    Prompts,
    Release,
    Released,
    ReleaseStage,
    Resume,
    Resumed,
    Returned,
)

RANK = Path(__file__).parent / "rank.py"
MASK = (1 << 64) - 1
#: As if the engines held so much.
WEIGHT_BYTES = 100 << 20


class Controller(Peer):
    """Plays the controller of one rank."""

    def __init__(self, folder: Path, *arguments: str, **changes: Any) -> None:
        super().__init__(folder)
        self.out = folder
        standin = Standin(folder, devices=1)
        environment = standin.environment(
            **self.environment(),
            JOB_OUT=str(folder),
            BATON_STANDIN_GRANULARITY="65536",
            RANK="0",
            LOCAL_RANK="0",
            WORLD_SIZE="1",
            LOCAL_WORLD_SIZE="1",
            LOCAL_SIZE="1",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(20000 + os.getpid() % 20000),
        )
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, str(RANK), *arguments],
            env=environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.accept(welcome(**changes), deadline_seconds=120)
        self.arena = memfd(0)
        self.send(Arena(arena_bytes=1 << 30, weight_bytes=WEIGHT_BYTES), (self.arena,))
        if "unattached" not in arguments:
            self.manifest: Manifest = self.receive(Manifest)

    def result(self, name: str) -> Any:
        return json.loads((self.out / f"{name}.json").read_text())

    def open_rollout(self, epoch: int, *, opened: int | None = None) -> list[Released]:
        assert self.receive(Arrive).epoch == epoch
        released: list[Released] = []
        stages: tuple[ReleaseStage, ...] = ("optimizer", "all")
        for seq, stage in enumerate(stages, start=1):
            self.send(Release(seq=seq, stage=stage, want_bytes=None))
            released.append(self.receive(Released))
        self.send(Opened(epoch=epoch if opened is None else opened))
        return released

    def answer(self, prompts: Prompts, epoch: int, answers: list[dict[str, Any]]) -> None:
        self.send(
            Completions(
                call=prompts.call,
                epoch=epoch,
                tokens=arrays.binary_u32([t for answer in answers for t in answer["tokens"]]),
                lengths=arrays.binary_u32([len(answer["tokens"]) for answer in answers]),
                logprobs=arrays.binary_f32([value for answer in answers for value in answer["logprobs"]]),
                finish=arrays.binary_u8([index % 2 for index in range(len(answers))]),
            )
        )

    def close_rollout(self) -> Resumed:
        self.receive(Leave)
        self.send(Resume(seq=9))
        return self.receive(Resumed)

    def end(self) -> int:
        return self.process.wait(30)

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.arena)
        self.log.close()
        super().close()


@pytest.fixture
def start(tmp_path) -> Iterator[Any]:
    require_build()
    made: list[Controller] = []

    def make(*arguments: str, **changes: Any) -> Controller:
        made.append(Controller(tmp_path, *arguments, **changes))
        return made[-1]

    yield make
    for controller in made:
        controller.close()


def place_factor(index: int) -> int:
    x = (index ^ (index >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return 2**32 + (x ^ (x >> 16))


def checksum(values: np.ndarray) -> int:
    """As the contract of the weights says, in plain Python."""
    bits = values.view(np.uint32).tolist()
    return sum((value + 1) * place_factor(index) for index, value in enumerate(bits)) & MASK


def exported(controller: Controller, segments: list[int]) -> tuple[dict[int, bytes], list[int]]:
    """The content of these segments, and the checksums."""
    controller.send(ExportSegments(seq=5, segments=arrays.binary_u64(segments), checksums=True))
    found: dict[int, bytes] = {}
    while True:
        message, descriptors = controller.frames.receive(30)
        assert isinstance(message, Exported), message
        numbers = arrays.u64s(message.segments, "segments").tolist()
        assert len(numbers) == len(descriptors)
        for number, fd in zip(numbers, descriptors, strict=True):
            with mmap.mmap(fd, controller.manifest.segment_bytes, prot=mmap.PROT_READ) as view:
                found[number] = view[:]
            os.close(fd)
        if message.last:
            return found, arrays.u64s(message.checksums, "checksums").tolist()


def after_resume(controller: Controller) -> tuple[LogprobCheck, Returned, Metrics]:
    """What a rank says between taking its memory back and the end of its step: the step waits for what streams in."""
    check, returned, metrics = (controller.receive(kind) for kind in (LogprobCheck, Returned, Metrics))
    assert returned.copied_bytes > 0
    assert metrics.values.keys() == {"loss"}
    return check, returned, metrics


@pytest.mark.parametrize(("stage", "ending"), [(2, "finish"), (3, "raise")])
def test_a_rank_through_three_rollouts(start, stage, ending):
    controller = start(str(stage), ending, logprob_sequences=3)
    manifest = controller.manifest
    assert (manifest.zero_stage, manifest.dtype) == (stage, "float32")
    # Tied weights are named once, as transformers names them.
    assert manifest.names[0] == "model.embed_tokens.weight"
    assert not any("lm_head" in name for name in manifest.names)

    # First rollout: the weights leave as segments, while the optimizer's memory is gone.
    assert controller.receive(Arrive).epoch == 0
    controller.send(Release(seq=1, stage="optimizer", want_bytes=None))
    released = controller.receive(Released)
    assert released.seq == 1
    assert released.kept_bytes > 0
    weights = controller.result("weights")
    offsets = arrays.u64s(manifest.piece_offset, "offsets").astype(np.int64)
    elements = arrays.u64s(manifest.piece_elements, "elements").astype(np.int64)
    size = manifest.segment_bytes
    needed = sorted(
        {s for o, e in zip(offsets, elements, strict=True) for s in range(o // size, (o + e * 4 - 1) // size + 1)}
    )
    content, checksums = exported(controller, needed)
    for tensor, start_element, count, offset in zip(
        arrays.u32s(manifest.piece_tensor, "tensor").tolist(),
        arrays.u64s(manifest.piece_start, "start").tolist(),
        elements.tolist(),
        offsets.tolist(),
        strict=True,
    ):
        name = manifest.names[tensor]
        whole = b"".join(content[segment] if segment in content else b"\0" * size for segment in range(max(needed) + 1))
        piece = np.frombuffer(whole[offset : offset + 4 * count], dtype=np.float32)
        expected = np.array(weights[name], dtype=np.float32)
        assert start_element == 0
        assert np.array_equal(piece, expected), name
        assert checksums[tensor] == checksum(expected), name
    controller.send(Release(seq=2, stage="all", want_bytes=None))
    rest = controller.receive(Released)
    assert rest.kept_bytes == 0
    controller.send(Opened(epoch=0))

    prompts = controller.receive(Prompts)
    assert (prompts.call, prompts.sampling.n, prompts.sampling.seed) == (0, 2, 3)
    assert arrays.u32s(prompts.lengths, "lengths").tolist() == [3, 5]
    assert arrays.u32s(prompts.tokens, "tokens").tolist() == [5, 6, 7, 9, 8, 7, 6, 5]
    answers = controller.result("answers")
    controller.answer(prompts, 0, answers)
    second = controller.receive(Prompts)
    assert (second.call, second.lengths) == (1, b"")
    controller.answer(second, 0, [])
    resumed = controller.close_rollout()
    assert resumed.seq == 9
    assert resumed.pending_bytes > 0
    difference = after_resume(controller)[0]
    assert difference.tokens == 1 + 4 + 1  # three of the four completions
    assert difference.max_difference is not None
    assert difference.max_difference < 1e-4

    # Second: optimizer state exists by now, so more is released; the arena given before is large enough.
    epoch_one = controller.open_rollout(1)
    state = sum(message.released_bytes for message in epoch_one)
    assert state >= 0.95 * manifest.state_bytes
    assert state > released.released_bytes + rest.released_bytes
    prompts = controller.receive(Prompts)
    controller.answer(prompts, 1, controller.result("answers"))
    assert controller.close_rollout().pending_bytes > 0
    assert after_resume(controller)[0].tokens == 6

    # Third: no prompts at all.
    controller.open_rollout(2)
    controller.answer(controller.receive(Prompts), 2, [])
    controller.close_rollout()
    difference = after_resume(controller)[0]
    assert (difference.tokens, difference.max_difference) == (0, None)
    if ending == "finish":
        controller.receive(Goodbye)
    else:
        failure = controller.receive(Failed).failure
        assert failure.code == "UNEXPECTED_ERROR"
        assert "the script has a mistake" in failure.message
    assert controller.end() == (0 if ending == "finish" else 1)

    rollout = controller.result("rollout0")
    assert rollout["epoch"] == 0
    assert rollout["more"] == 0
    expected = [
        [index // 2, index % 2, answer["tokens"], answer["logprobs"], ("stop", "length")[index % 2], 0]
        for index, answer in enumerate(answers)
    ]
    for got, wanted in zip(rollout["completions"], expected, strict=True):
        assert got[:3] + got[4:] == wanted[:3] + wanted[4:]
        assert got[3] == pytest.approx(wanted[3], abs=1e-6)


def test_the_largest_difference_of_logprobs_is_reported(start):
    controller = start("2", logprob_sequences=4)
    controller.open_rollout(0)
    answers = controller.result("answers")
    answers[1]["logprobs"][2] += 0.01
    controller.answer(controller.receive(Prompts), 0, answers)
    controller.answer(controller.receive(Prompts), 0, [])
    controller.close_rollout()
    check = controller.receive(LogprobCheck)
    assert check.max_difference == pytest.approx(0.01, rel=0.01)


def test_a_rank_that_had_to_release_nothing_goes_on(start):
    controller = start("3", logprob_sequences=2)
    assert controller.receive(Arrive).epoch == 0
    controller.send(Opened(epoch=0))
    controller.answer(controller.receive(Prompts), 0, controller.result("answers"))
    controller.answer(controller.receive(Prompts), 0, [])
    resumed = controller.close_rollout()
    assert (resumed.copied_bytes, resumed.pending_bytes) == (0, 0)
    assert controller.receive(Returned).copied_bytes == 0
    assert controller.receive(LogprobCheck).tokens > 0
    controller.receive(Metrics)
    controller.open_rollout(1)  # the next one releases as ever


def test_an_engine_with_old_weights_ends_the_rank(start):
    controller = start("2")
    controller.open_rollout(0, opened=41)
    failure = controller.receive(Failed).failure
    assert (failure.code, failure.expected) == ("STALE_WEIGHTS", "weights of step 0")
    assert controller.end() == 1


@pytest.mark.parametrize(
    ("ending", "owed"),
    [pytest.param("unattached", "baton.attach(engine)", marks=only_in_all), ("unfinished", "session.finish()")],
)
def test_a_script_that_just_stops_has_not_come_to_its_end(start, ending, owed):
    controller = start("2", ending)
    failure = controller.receive(Failed).failure
    assert failure.code == "RANK_LEFT"
    assert owed in failure.expected
    assert failure.found == f"the script ended without {owed}"
    assert controller.end() == 0


def test_a_rank_that_reads_training_state_in_a_rollout_dies_with_the_line_in_its_output(start):
    controller = start("2", "read")
    controller.open_rollout(0)
    assert controller.end() in (-signal.SIGSEGV, -signal.SIGBUS)
    line = next(
        number for number, text in enumerate(RANK.read_text().splitlines(), start=1) if "the log must have" in text
    )
    assert f'rank.py", line {line} in main' in (controller.out / "log").read_text()


def test_a_kernel_that_reads_training_state_in_a_rollout_is_told_with_what_to_do(start):
    controller = start("2", "illegal")
    controller.open_rollout(0)
    failure = controller.receive(Failed).failure
    assert failure.code == "CUDA_ILLEGAL_ACCESS"
    assert "away for the rollout" in failure.found
    assert "training memory" in failure.action
    assert controller.end() == 1


def test_the_weights_of_the_engines_decide_how_large_segments_are(start):
    controller = start("3", "by-size")
    assert controller.manifest.segment_bytes == 8 << 20  # 100 MiB in about 16
