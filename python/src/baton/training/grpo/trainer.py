"""Training on generated batches: every pass over one, with DeepSpeed's gradient accumulation.

A generated batch is cut into micro-batches of `micro_batch` completions; all ranks have equally many. A pass uses each
once, and `num_iterations` passes use the batch up. `gradient_accumulation_steps` micro-batches make an optimizer step,
wherever they come from: a step may end in the middle of a pass, and may span several generated batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from baton.errors import BatonError
from baton.training.grpo.batch import GeneratedBatch
from baton.training.grpo.figures import Figures
from baton.training.grpo.loss import LossOptions, Normaliser, policy_loss
from baton.training.grpo.micro_batch import MicroBatch
from baton.training.grpo.options import GrpoOptions
from baton.training.grpo.policy import token_logprobs
from baton.training.grpo.policy_model import Policy
from baton.training.grpo.ranks import Ranks

Phase = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Step:
    """An optimizer step. `number`: of all, from 1. `position`: micro-batches of the generated batch that are used up,
    over its passes. `iteration`: the pass that it ended in, from 1. `seconds`: since the step before, or the batch's
    begin.
    """

    number: int
    position: int
    iteration: int
    loss: float
    figures: Figures
    gradient_norm: float | None
    learning_rate: float
    seconds: float


class Trainer:
    """`reference_phase`: a context in which reference models are on the GPU: `Session.reference`."""

    def __init__(self, policy: Policy, options: GrpoOptions, ranks: Ranks, reference_phase: Phase) -> None:
        self._policy, self._options, self._ranks = policy, options, ranks
        self._engine = policy.engine
        self._reference_phase = reference_phase
        self.micro_batches = options.steps_per_generation(ranks.count)
        self._loss = LossOptions(
            clip_low=options.clip,
            clip_high=options.upper_clip,
            beta=options.beta,
            loss=options.loss,
            importance_cap=options.importance_cap,
            max_completion_tokens=options.max_completion_tokens,
            temperature=options.temperature,
        )
        self._losses: list[Tensor] = []
        self._figures = Figures.none(ranks.device)

    @property
    def passes(self) -> int:
        """Micro-batches that one generated batch gives, over all its passes."""
        return self.micro_batches * self._options.num_iterations

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the policy changes before a generated batch is used up.

        Else the logprobs of the one forward pass are the old ones too, and a second pass would be for nothing.
        """
        return self._options.gradient_accumulation_steps % self.passes != 0

    def prepare(self, batch: GeneratedBatch) -> None:
        """What belongs to the generated batch and not to a pass: old logprobs and those of the reference.

        Once, before its first step. Raises BatonError STALE_COMPLETION, BAD_GENERATED_BATCH.
        """
        batch.check_epoch(int(self._engine.global_steps), allow=self._options.stale == "allow")
        micros = self._micros(batch)
        if self.needs_old_logprobs:
            batch.set_old_logprobs(micros, self._logprobs(self._engine, micros))
        if self._options.beta > 0:
            with self._reference_phase(), self._policy.as_reference() as reference:
                batch.set_reference_logprobs(micros, self._logprobs(reference, micros))

    def _micros(self, batch: GeneratedBatch) -> list[MicroBatch]:
        micros = batch.micro_batches(self._options.micro_batch)
        rows = [len(micro.samples) for micro in micros]
        if rows != [self._options.micro_batch] * self.micro_batches:
            # With fewer on one rank its steps would be others than those of the rest.
            raise BatonError(
                "BAD_GENERATED_BATCH",
                "A generated batch is not of the size that the options say.",
                expected=f"{self.micro_batches} micro-batches of {self._options.micro_batch} samples on this rank",
                found=f"micro-batches of {', '.join(map(str, rows)) or 'no'} samples",
                action="Give all completions of one rollout, failed ones too: they are left out of the loss there.",
            )
        return micros

    def _logprobs(self, model: Any, micros: list[MicroBatch]) -> list[Tensor]:
        """Without dropout: the engine that sampled has none either."""
        module = getattr(model, "module", model)
        was_training = module.training
        module.eval()
        found: list[Tensor] = []
        with torch.no_grad():
            for micro in micros:
                on_device = micro.to(self._policy.device)
                values, _ = token_logprobs(model, on_device.ids, on_device.attention_mask, self._options.temperature)
                found.append(values.cpu())
        module.train(was_training)
        return found

    def learn(self, batch: GeneratedBatch, begin: int = 0) -> Iterator[Step]:
        """Trains on the micro-batches from position `begin` on, and gives each optimizer step as it is made.

        Collective. Between two steps a checkpoint may be saved; the batch has to be used to its end.
        """
        micros = self._micros(batch)
        normalisers = self._normalisers(micros, begin)
        self._engine.module.train()
        started = time.perf_counter()
        for position in range(begin, self.passes):
            micro = micros[position % len(micros)].to(self._policy.device)
            at_boundary = bool(self._engine.is_gradient_accumulation_boundary())
            learning_rate = float(self._engine.get_lr()[0])  # before the scheduler goes on to the next step
            self._backward(micro, normalisers[position])
            self._engine.step()
            if at_boundary:
                ended = time.perf_counter()
                yield self._step(position + 1, learning_rate, ended - started)
                started = time.perf_counter()

    def _backward(self, micro: MicroBatch, normaliser: Normaliser) -> None:
        options = self._options
        logprobs, entropy = token_logprobs(
            self._engine, micro.ids, micro.attention_mask, options.temperature, entropy=True
        )
        if not self.needs_old_logprobs:
            micro = replace(micro, old_logprobs=logprobs.detach())
        loss, figures = policy_loss(logprobs, micro, self._loss, normaliser, entropy)
        self._engine.backward(loss)
        self._losses.append(loss.detach().double())
        self._figures = self._figures.add(figures)

    def _normalisers(self, micros: list[MicroBatch], begin: int) -> list[Normaliser]:
        """For each position: what its optimizer step covers of this generated batch, over all ranks. Collective."""
        local = torch.stack([Normaliser.of([micro]).tensor() for micro in micros])
        counts = self._ranks.sum(local)
        # micro_steps counts all that the engine has seen; at `begin` so many of an unfinished step are behind it.
        accumulation = self._options.gradient_accumulation_steps
        offset = int(self._engine.micro_steps) - begin
        groups: dict[int, Tensor] = {}
        for position in range(self.passes):
            step = (offset + position) // accumulation
            groups[step] = groups.get(step, torch.zeros_like(counts[0])) + counts[position % len(micros)]
        return [Normaliser.from_tensor(groups[(offset + position) // accumulation]) for position in range(self.passes)]

    def _step(self, position: int, learning_rate: float, seconds: float) -> Step:
        losses = torch.stack(self._losses)
        sums, maxima = self._figures.tensor()
        summed = self._ranks.sum(torch.cat([losses.sum()[None], sums]))
        figures = Figures.from_tensor(summed[1:], self._ranks.max(maxima))
        self._losses, self._figures = [], Figures.none(self._ranks.device)
        norm = self._engine.get_global_grad_norm()
        return Step(
            number=int(self._engine.global_steps),
            position=position,
            iteration=(position - 1) // self.micro_batches + 1,
            loss=float(summed[0]) / (len(losses) * self._ranks.count),
            figures=figures,
            gradient_norm=None if norm is None else float(norm),
            learning_rate=learning_rate,
            seconds=seconds,
        )
