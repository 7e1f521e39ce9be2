"""The process of one engine: `python -m baton.evaluation.engine_process PARENT`. A job as JSON in, replies out, a line
each. What libraries print goes to the standard error."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Protocol

import msgspec

from baton.errors import BatonError
from baton.evaluation.job import Done, Failed, Finished, Job, Moved, Ready, Reply
from baton.parent import die_with


class Engine(Protocol):
    """A model that is loaded. `run` sends every sample of the job as it is done, and `Moved` in between."""

    def run(self, send: Callable[[Done | Moved], None]) -> None: ...


def main() -> int:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    die_with(int(sys.argv[1]))

    def send(reply: Reply) -> None:
        out.write(msgspec.json.encode(reply) + b"\n")
        out.flush()

    try:
        _work(msgspec.json.decode(sys.stdin.buffer.read(), type=Job), send)
    except Exception as error:
        traceback.print_exc()
        send(Failed(failure=_failure(error).to_wire()))
        return 1
    return 0


def _work(job: Job, send: Callable[[Reply], None]) -> None:
    try:
        engine = _started(job)
    except BatonError:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            raise
        raise BatonError(
            "ENGINE_NOT_STARTED",
            f"{job.engine} did not load the model.",
            expected=f"a model in {job.model} that it knows, and room for it",
            found=f"{type(error).__name__}: {str(error)[:500]}",
            action="Read its log; try the other --engine.",
        ) from error
    send(Ready())
    engine.run(send)
    send(Finished())


def _started(job: Job) -> Engine:
    if job.engine == "vllm":
        from baton.evaluation.vllm_engine import VllmEngine

        return VllmEngine(job)
    from baton.evaluation.transformers_engine import TransformersEngine

    return TransformersEngine(job)


def _is_out_of_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError"  # torch's, which is not imported for it


def _failure(error: Exception) -> BatonError:
    if _is_out_of_memory(error):
        return BatonError(
            "GPU_MEMORY_FULL",
            "The engine ran out of GPU memory.",
            expected="room for the model, and for the samples that are generated at once",
            found=str(error)[:300],
            action="Lower --batch-size or --max-tokens, split the model with --tp, or end what else uses the GPU.",
        )
    return BatonError.from_exception(error, "generating")


if __name__ == "__main__":
    sys.exit(main())
