"""Generation by vLLM, with the weights that are in the model's folder. Nothing is shared with a trainer here, so the
memory of the GPUs is vLLM's to divide."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from baton.engines.vllm import versions
from baton.engines.vllm.engine import ENVIRONMENT
from baton.engines.vllm.requests import seed_of
from baton.errors import BatonError
from baton.evaluation.job import Done, Job, Moved

_FINISH = ("stop", "length")


class VllmEngine:
    """A sample draws from a seed of its own: of the job's seed, its problem and its number."""

    def __init__(self, job: Job) -> None:
        """Raises BatonError VLLM_MISSING or VLLM_VERSION, and what vLLM raises."""
        versions.require()
        os.environ.update(ENVIRONMENT)
        from vllm.engine.arg_utils import EngineArgs  # pyright: ignore
        from vllm.v1.engine.llm_engine import LLMEngine  # pyright: ignore

        self._job = job
        self._engine: Any = LLMEngine.from_engine_args(EngineArgs(**arguments(job)))

    def run(self, send: Callable[[Done | Moved], None]) -> None:
        """Raises BatonError GENERATION_INCOMPLETE."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams  # pyright: ignore

        job = self._job
        names: dict[str, tuple[int, int]] = {}
        for problem, prompt, numbers in zip(job.problems, job.prompts, job.samples, strict=True):
            for sample in numbers:
                name = f"{problem}-{sample}"
                names[name] = (problem, sample)
                parameters = SamplingParams(**sampling(job, problem, sample), output_kind=RequestOutputKind.FINAL_ONLY)
                self._engine.add_request(name, {"prompt_token_ids": prompt}, parameters)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    send(_done(output, *names.pop(output.request_id)))
            send(Moved())
        if names:
            raise _incomplete(f"{len(names)} requests without an end")


def arguments(job: Job) -> dict[str, Any]:
    """Keyword arguments of vLLM's EngineArgs."""
    return {
        "model": job.model,
        "tensor_parallel_size": job.tensor_parallel,
        "distributed_executor_backend": "mp" if job.tensor_parallel > 1 else "uni",
        "dtype": job.dtype,
        "max_model_len": job.length,
        "max_num_seqs": job.batch_size,
        "gpu_memory_utilization": memory_share(job.tensor_parallel),
        "seed": 0,
        # Tokens go in and out; of the model's own sampling defaults nothing was asked for.
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "disable_log_stats": True,
    }


#: vLLM's own default share of a GPU's memory, and how much of what is free may be taken: a little is taken meanwhile.
_SHARE, _OF_FREE = 0.92, 0.95


def memory_share(tensor_parallel: int) -> float:
    """The part of the GPU's memory that vLLM may take: no more than is free, since others may run on it too. With
    several GPUs it is vLLM's default: a look at them would leave a CUDA context on each."""
    if tensor_parallel > 1 or not torch.cuda.is_available():
        return _SHARE
    free, total = torch.cuda.mem_get_info(0)
    return min(_SHARE, _OF_FREE * free / total)


def sampling(job: Job, problem: int, sample: int) -> dict[str, Any]:
    """Keyword arguments of vLLM's SamplingParams for one sample."""
    greedy = job.temperature == 0
    return {
        "n": 1,
        "temperature": job.temperature,
        "top_k": 0 if greedy else job.top_k,
        "top_p": 1.0 if greedy else job.top_p,
        "min_p": 0.0 if greedy else job.min_p,
        "max_tokens": job.max_tokens,
        "stop_token_ids": job.stop_token_ids,
        # What ends a completion is in stop_token_ids; the model's configuration adds nothing.
        "ignore_eos": True,
        "seed": None if greedy else seed_of(job.seed, problem, sample),
        "detokenize": False,
    }


def _done(output: Any, problem: int, sample: int) -> Done:
    completion = output.outputs[0]
    if completion.finish_reason not in _FINISH:
        raise _incomplete(f"a request that ended with {completion.finish_reason!r}")
    return Done(problem=problem, sample=sample, tokens=list(completion.token_ids), finish=completion.finish_reason)


def _incomplete(found: str) -> BatonError:
    return BatonError(
        "GENERATION_INCOMPLETE",
        "vLLM did not finish a request as asked.",
        expected="tokens up to a stop token or the length",
        found=found,
        action="Read the output of the engine; if it says nothing, please report this.",
    )
