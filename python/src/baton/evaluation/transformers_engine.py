"""Generation by transformers: any causal model of Hugging Face, on one GPU or on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from baton.engines.small.sampler import U64s, choose, stream_keys, uniforms
from baton.evaluation.job import Done, Job, Moved

Row = tuple[int, int]  # position of the problem in the job, sample


class TransformersEngine:
    """What a sample draws depends on (seed, problem, sample, position) alone, not on what is in its batch."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=getattr(torch, job.dtype))
        self._model = model.to(self._device).eval()
        # The model's own defaults (temperature, repetition penalty and the like) are not what was asked for.
        self._model.generation_config = GenerationConfig()

    def run(self, send: Callable[[Done | Moved], None]) -> None:
        job = self._job
        rows = [(position, sample) for position, numbers in enumerate(job.samples) for sample in numbers]
        # Like lengths together, so that little is padded; the longest first, so that a lack of memory shows at once.
        rows.sort(key=lambda row: -len(job.prompts[row[0]]))
        for begin in range(0, len(rows), job.batch_size):
            for done in self._batch(rows[begin : begin + job.batch_size], send):
                send(done)

    @torch.inference_mode()
    def _batch(self, rows: Sequence[Row], send: Callable[[Moved], None]) -> list[Done]:
        job = self._job
        prompts = [job.prompts[position] for position, _ in rows]
        width = max(len(prompt) for prompt in prompts)
        stop = job.stop_token_ids
        padding = stop[0] if stop else 0
        ids = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        processors = LogitsProcessorList()
        if job.temperature > 0:
            processors.append(_Sampling(job, rows, width))
        made: Tensor = self._model.generate(
            input_ids=ids.to(self._device),
            attention_mask=mask.to(self._device),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=job.max_tokens,
                eos_token_id=stop or None,
                pad_token_id=padding,
            ),
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([_Progress(send)]),
        )
        return [_done(job, row, tokens) for row, tokens in zip(rows, made[:, width:].tolist(), strict=True)]


def _done(job: Job, row: Row, tokens: list[int]) -> Done:
    position, sample = row
    end = next((i for i, token in enumerate(tokens) if token in job.stop_token_ids), None)
    kept = tokens if end is None else tokens[: end + 1]  # what follows is padding
    return Done(problem=job.problems[position], sample=sample, tokens=kept, finish="length" if end is None else "stop")


class _Sampling(LogitsProcessor):
    """Chooses by itself, and leaves a single token to the greedy search."""

    def __init__(self, job: Job, rows: Sequence[Row], width: int) -> None:
        problems = np.array([job.problems[position] for position, _ in rows])
        self._keys: U64s = stream_keys(job.seed, problems, np.array([sample for _, sample in rows]))
        self._job, self._width = job, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        numbers = uniforms(self._keys, input_ids.shape[1] - self._width)
        tokens, _ = choose(scores.float(), self._job, numbers)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens.unsqueeze(1), 0.0)


class _Progress(StoppingCriteria):
    """Stops nothing."""

    def __init__(self, send: Callable[[Moved], None]) -> None:
        self._send = send

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:  # noqa: ARG002 - they come by name
        self._send(Moved())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
