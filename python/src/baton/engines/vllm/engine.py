"""vLLM as the engine process sees it: vLLM's engine loop in this process, its workers reached by collective calls.

With one GPU the worker lives in this process too; with more, vLLM's executor starts one process each. Either way
they are reached through `WorkerExtension.baton_call`. vLLM's own sleep and wake are not used: they collect garbage,
die when the GPU's free memory shrinks meanwhile, and may let requests run before the cache is there.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from baton import native
from baton.engines.adapter import EngineAdapter, EngineConfig, EngineInfo, Request, Sample, Sampling, WakeTag
from baton.engines.requests import check_requests
from baton.engines.vllm import requests as translate
from baton.engines.vllm import versions
from baton.engines.vllm.options import engine_arguments, visible_devices
from baton.errors import BatonError

#: What vLLM reads from the environment when it is imported.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
}
#: Requests, and tokens of each, that a new engine is tried with.
_WARM_REQUESTS, _WARM_TOKENS = 64, 16


class VllmEngine(EngineAdapter):
    """See `EngineAdapter`. Errors of a worker arrive as they are."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._config: EngineConfig | None = None
        self._pids: list[int] = []
        self._vocabulary = 0
        self._calls = 0
        self._divisor: float | None = None

    def start(self, config: EngineConfig, deadline: float) -> EngineInfo:
        ends = time.monotonic() + deadline
        versions.require()
        self._config = config
        os.environ.update(ENVIRONMENT)
        inherited = os.environ.get("CUDA_VISIBLE_DEVICES")
        if inherited is not None and not inherited.strip():
            raise _needs_gpu("CUDA_VISIBLE_DEVICES is empty, as it is with stand-in GPUs")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_devices(config.devices, inherited, _gpus())
        require_gpu()
        from vllm.engine.arg_utils import EngineArgs  # pyright: ignore
        from vllm.v1.engine.llm_engine import LLMEngine  # pyright: ignore

        arguments = engine_arguments(config, set(EngineArgs.__dataclass_fields__))
        self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        infos = self.collective("baton_info", deadline=ends - time.monotonic())
        self._pids = [info["pid"] for info in infos]
        self._vocabulary = infos[0]["vocabulary_size"]
        self._warm_up()
        self.collective("baton_record_own", deadline=ends - time.monotonic())
        return EngineInfo.of(config, infos)

    def sleep(self, level: int, deadline: float) -> list[int | None]:
        return self.collective("baton_sleep", level, deadline=deadline)

    def wake(self, tags: Sequence[WakeTag], deadline: float) -> None:
        self.collective("baton_wake", list(tags), deadline=deadline)
        if "kv_cache" in tags and not self._engine.reset_prefix_cache():
            raise BatonError(
                "CACHE_IN_USE",
                "vLLM would not forget the KV cache of earlier weights.",
                expected="no unfinished request while the engine wakes",
                found="blocks in use",
                action="Please report this.",
            )

    def collective(self, method: str, *args: Any, deadline: float) -> list[Any]:
        answers = self._engine.collective_rpc("baton_call", timeout=max(deadline, 0.001), args=(method, list(args)))
        for answer in answers:
            if "failure" in answer:
                raise BatonError.from_wire(answer["failure"])
        return [answer["answer"] for answer in answers]

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_progress: Callable[[int, int], None]
    ) -> list[list[Sample]]:
        from vllm.sampling_params import RequestOutputKind, SamplingParams  # pyright: ignore

        assert self._config is not None
        length = self._config.max_model_length
        check_requests(requests, length, self._vocabulary)
        divisor = translate.logits_divisor(sampling)
        if divisor != self._divisor:
            self.collective("baton_divisor", divisor, deadline=60.0)
            self._divisor = divisor
        self._calls += 1
        collector = translate.Collector(requests, str(self._calls))
        try:
            for number, request in enumerate(requests):
                prompt = request.prompt.tolist()
                for k, name in enumerate(collector.names(number)):
                    parameters = translate.parameters(sampling, request, k, length)
                    self._engine.add_request(
                        name,
                        {"prompt_token_ids": prompt},
                        SamplingParams(**parameters, output_kind=RequestOutputKind.DELTA),
                    )
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    completion = output.outputs[0]
                    finish = completion.finish_reason if output.finished else None
                    collector.add(output.request_id, completion.token_ids, completion.logprobs, finish)
                on_progress(collector.finished, collector.generated)
        except BaseException:
            with contextlib.suppress(Exception):
                self._engine.abort_request(collector.unfinished())
            raise
        self._drain()
        return collector.samples()

    def _warm_up(self) -> None:
        """The first requests of a process load and compile kernels; the first handoff shall not wait for that. Needs
        weights that can be computed with, whatever they are."""
        assert self._config is not None
        length = self._config.max_model_length
        prompt = np.arange(min(_WARM_TOKENS, max(1, length // 2)), dtype=np.uint32) % self._vocabulary
        requests = [Request(prompt=prompt, samples=1, stream=stream) for stream in range(_WARM_REQUESTS)]
        for temperature in (1.0, 0.0):
            sampling = Sampling(
                temperature, top_k=0, top_p=1.0, min_p=0.0, max_tokens=_WARM_TOKENS, stop_token_ids=(), seed=0
            )
            try:
                self.generate(requests, sampling, lambda *_: None)
            except BatonError as error:
                if error.code != "LOGITS_NOT_FINITE":  # weights that mean nothing may give such
                    raise
                self._drain()

    def worker_pids(self) -> list[int]:
        return self._pids

    def close(self, deadline: float) -> None:  # noqa: ARG002 - vLLM has deadlines of its own here
        """Ends the workers' processes; a worker in this process ends with it."""
        if self._engine is None or self._config is None or self._config.tensor_parallel == 1:
            return
        with contextlib.suppress(Exception):
            self._engine.engine_core.shutdown()

    def _drain(self) -> None:
        """vLLM schedules one step ahead; nothing may be under way when the memory goes."""
        core = self._engine.engine_core.engine_core
        while getattr(core, "batch_queue", None):
            self._engine.step()


def require_gpu() -> None:
    """Raises BatonError VLLM_NEEDS_GPU without a driver, or on a stand-in GPU: there is no CUDA runtime on it."""
    driver = native.driver_probe()
    if not driver.available or driver.simulated:
        raise _needs_gpu(f"stand-in GPUs ({driver.path})" if driver.available else f"no driver: {driver.reason}")


def _needs_gpu(found: str) -> BatonError:
    return BatonError(
        "VLLM_NEEDS_GPU",
        "vLLM needs a real GPU.",
        expected="an NVIDIA driver with at least one GPU",
        found=found,
        action="Use `engine.kind: small` on machines without a GPU.",
    )


def _gpus() -> int:
    """GPUs of the node, 0 when NVML cannot be asked. CUDA must not be initialised yet: it reads CUDA_VISIBLE_DEVICES
    once."""
    try:
        return native.gpu_count()
    except BatonError:
        return 0
