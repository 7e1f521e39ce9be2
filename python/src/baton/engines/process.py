"""The engine process: serves the controller's frames with an engine behind the adapter.

`BATON_ENGINE` holds the EngineConfig as JSON, and `kind`. The main thread calls the adapter; a second thread reads
frames, answers pings and notices the end of the run whatever the main thread is doing: it then kills the workers
and this process, if the main thread does not end in order at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from baton.connection import Connection, unexpected
from baton.engines.adapter import EngineAdapter, EngineConfig, Request, Sample, Sampling
from baton.engines.workers import lost_worker
from baton.errors import BatonError
from baton.protocol import arrays
from baton.protocol.messages import (
    Asleep,
    Awake,
    FromController,
    Generate,
    Generated,
    Plan,
    Progress,
    Ready,
    Sleep,
    Sync,
    Wake,
)

#: The controller has deadlines of its own for every phase, and ends an engine that passes one. These only keep
#: an engine from waiting for ever when the controller's are switched off.
START_SECONDS = 900.0
CALL_SECONDS = 600.0
CLOSE_SECONDS = 1.0
#: Time for an orderly end after a shutdown frame, before the reading thread ends the process.
ORDERLY_SECONDS = 0.5
PROGRESS_SECONDS = 0.2


def parse_config(text: str) -> tuple[str, EngineConfig]:
    """The engine's kind and configuration. Raises BatonError BAD_ENGINE_CONFIG."""
    try:
        values: dict[str, Any] = json.loads(text)
        kind = str(values.pop("kind"))
        values["devices"] = tuple(int(device) for device in values["devices"])
        config = EngineConfig(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BatonError(
            "BAD_ENGINE_CONFIG",
            f"BATON_ENGINE cannot be read: {type(error).__name__}: {error}",
            expected="JSON with kind, " + ", ".join(field.name for field in fields(EngineConfig)),
            found=text[:200],
            action="Please report this.",
        ) from error
    if len(config.devices) != config.tensor_parallel:
        raise BatonError(
            "BAD_ENGINE_CONFIG",
            "An engine needs one device for each tensor-parallel worker.",
            expected=f"{config.tensor_parallel} devices",
            found=f"{len(config.devices)}",
            action="Please report this.",
        )
    return kind, config


def make_adapter(kind: str) -> EngineAdapter:
    """Raises BatonError UNKNOWN_ENGINE."""
    if kind == "small":
        from baton.engines.small.engine import SmallEngine

        return SmallEngine()
    if kind == "vllm":
        from baton.engines.vllm.engine import VllmEngine

        return VllmEngine()
    raise BatonError(
        "UNKNOWN_ENGINE",
        f"There is no engine of the kind {kind!r}.",
        expected="small or vllm",
        found=kind,
        action="Correct the engine's kind in the recipe.",
    )


class Ended(Exception):  # noqa: N818 - an end in order is no error
    """The run is over. `failure` None: in order."""

    def __init__(self, failure: BatonError | None) -> None:
        super().__init__(str(failure) if failure else "the run has ended")
        self.failure = failure


class Inbox:
    """Frames of the controller, read by a thread of its own."""

    def __init__(self, connection: Connection, on_late: Callable[[], None]) -> None:
        """`on_late` is called in the reading thread when the run ended and this process still has not."""
        self._connection = connection
        self._on_late = on_late
        self._frames: queue.SimpleQueue[FromController | None] = queue.SimpleQueue()
        self._ended: Ended | None = None
        self._thread = threading.Thread(target=self._read, name="baton-inbox", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def check(self) -> None:
        """Raises Ended when the run is over."""
        if self._ended is not None:
            raise self._ended

    def next(self) -> FromController:
        """The next frame. Waits as long as the controller lives and gives signs of life; raises Ended."""
        frame = self._frames.get()
        self.check()
        assert frame is not None
        return frame

    def _read(self) -> None:
        try:
            while True:
                frame, descriptors = self._connection.receive()
                for fd in descriptors:
                    os.close(fd)
                self._frames.put(frame)
        except BatonError as error:
            self._ended = Ended(None if error.code == "RUN_ENDED" else error)
        except BaseException as error:
            self._ended = Ended(BatonError.from_exception(error, "Reading from the controller"))
        self._frames.put(None)
        time.sleep(ORDERLY_SECONDS + CLOSE_SECONDS)
        self._on_late()


@dataclass
class EngineProcess:
    """State of one engine between frames."""

    config: EngineConfig
    adapter: EngineAdapter
    connection: Connection
    inbox: Inbox
    #: Epoch of the weights; None: there are none.
    epoch: int | None = None

    def run(self) -> None:
        """Starts the engine and serves frames. Raises Ended, or BatonError for what the controller must be told."""
        info = self.adapter.start(self.config, START_SECONDS)
        self.inbox.check()
        self.adapter.collective("baton_connect", deadline=CALL_SECONDS)
        self.adapter.sleep(2, CALL_SECONDS)
        self._awake: set[str] = set()
        self.connection.send(
            Ready(
                tensor_parallel=info.tensor_parallel,
                dtype=info.dtype,
                weight_bytes=info.weight_bytes,
                cache_bytes=info.cache_bytes,
                max_model_length=info.max_model_length,
                vocabulary_size=info.vocabulary_size,
            )
        )
        while True:
            self._serve(self.inbox.next())

    def _serve(self, frame: FromController) -> None:
        began = time.monotonic()
        if isinstance(frame, Wake):
            self.adapter.wake(frame.tags, CALL_SECONDS)
            self._awake.update(frame.tags)
            self.connection.send(Awake(seq=frame.seq, tags=frame.tags, seconds=time.monotonic() - began))
        elif isinstance(frame, Sleep):
            left = self.adapter.sleep(frame.level, CALL_SECONDS)
            self._awake.clear()
            if frame.level == 2:
                self.epoch = None
            self.connection.send(Asleep(seq=frame.seq, left_bytes=left, seconds=time.monotonic() - began))
        elif isinstance(frame, Plan):
            self.adapter.collective("baton_plan", frame.seq, deadline=CALL_SECONDS)
        elif isinstance(frame, Sync):
            self.epoch = None
            epochs = self.adapter.collective("baton_sync", frame.seq, deadline=CALL_SECONDS)
            # What the workers really have, not what was asked for: the controller compares.
            self.epoch = min(epochs)
        elif isinstance(frame, Generate):
            self._generate(frame, began)
        else:
            raise unexpected(frame, (Wake, Sleep, Plan, Sync, Generate))

    def _generate(self, frame: Generate, began: float) -> None:
        if self.epoch is None or self._awake != {"weights", "kv_cache"}:
            raise BatonError(
                "ENGINE_NOT_AWAKE",
                "An engine was asked to generate before it had weights and cache.",
                expected="weights synced, weights and cache awake",
                found=f"epoch {self.epoch}, awake: {', '.join(sorted(self._awake)) or 'nothing'}",
                action="Please report this.",
            )
        requests, sampling = _requests(frame)
        latest, told = 0.0, (-1, -1)

        def progress(finished: int, tokens: int) -> None:
            nonlocal latest, told
            self.inbox.check()
            now = time.monotonic()
            # Only real progress is told: the controller's deadline runs from the last of these frames.
            if (finished, tokens) != told and now - latest >= PROGRESS_SECONDS:
                latest, told = now, (finished, tokens)
                self.connection.send(
                    Progress(request=frame.request, finished_samples=finished, generated_tokens=tokens)
                )

        groups = self.adapter.generate(requests, sampling, progress)
        samples = [sample for group in groups for sample in group]
        self.connection.send(
            Generated(
                request=frame.request,
                epoch=self.epoch,
                tokens=_joined([sample.tokens for sample in samples], np.uint32),
                lengths=arrays.binary_u32([len(sample.tokens) for sample in samples]),
                logprobs=_joined([sample.logprobs for sample in samples], np.float32),
                finish=_finish(samples),
                seconds=time.monotonic() - began,
            )
        )


def _requests(frame: Generate) -> tuple[list[Request], Sampling]:
    lengths = arrays.u32s(frame.lengths, "lengths")
    samples = arrays.u32s(frame.samples, "samples")
    streams = arrays.u32s(frame.streams, "streams")
    tokens = arrays.u32s(frame.tokens, "tokens")
    seed = frame.sampling.seed
    if not (lengths.size == samples.size == streams.size and int(lengths.sum()) == tokens.size) or seed is None:
        raise BatonError(
            "PROTOCOL_ERROR",
            "A generate frame does not fit together.",
            expected="a length, a sample count and a stream for each prompt, all its tokens, and a seed",
            found=f"{lengths.size}, {samples.size}, {streams.size}; {tokens.size} tokens; seed {seed}",
            action="Use the same version of Baton in every process of the run.",
        )
    prompts = np.split(tokens, np.cumsum(lengths)[:-1]) if lengths.size else []
    requests = [
        Request(prompt, int(count), int(stream))
        for prompt, count, stream in zip(prompts, samples, streams, strict=True)
    ]
    return requests, Sampling(
        frame.sampling.temperature,
        frame.sampling.top_k,
        frame.sampling.top_p,
        frame.sampling.min_p,
        frame.sampling.max_tokens,
        tuple(frame.sampling.stop_token_ids),
        seed,
    )


def _joined(parts: list[Any], dtype: Any) -> bytes:
    return np.concatenate(parts).astype(dtype).tobytes() if parts else b""


def _finish(samples: list[Sample]) -> bytes:
    return bytes(0 if sample.finish == "stop" else 1 for sample in samples)


def _kill_all(adapter: EngineAdapter) -> None:
    """The end that needs nobody's cooperation."""
    for pid in adapter.worker_pids():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    os._exit(1)


def main() -> int:
    """Returns the exit status: 0 when the run ended in order."""
    # Ctrl-C reaches every process of the terminal; the controller decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        kind, config = parse_config(os.environ.get("BATON_ENGINE", ""))
        connection = Connection.open("engine", config.index)
    except BatonError as error:
        print(f"baton: {error}", file=sys.stderr, flush=True)
        return 1
    adapter: EngineAdapter | None = None
    try:
        adapter = make_adapter(kind)
        inbox = Inbox(connection, lambda adapter=adapter: _kill_all(adapter))
        inbox.start()
        EngineProcess(config, adapter, connection, inbox).run()
        return 0
    except Ended as end:
        if end.failure is not None:
            print(f"baton: engine {config.index} ends: {end.failure}", file=sys.stderr, flush=True)
        return 0 if end.failure is None else 1
    except BaseException as error:
        if isinstance(error, BatonError) and error.code == "RUN_ENDED":
            return 0  # a worker heard of it first
        if not isinstance(error, BatonError):
            traceback.print_exc()
        pids = adapter.worker_pids() if adapter is not None else []
        connection.fail(lost_worker(error, pids, config.index) or error, f"Engine {config.index}")
        return 1
    finally:
        if adapter is not None:
            adapter.close(CLOSE_SECONDS)
        connection.close()
