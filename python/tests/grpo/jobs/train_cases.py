"""Trains every case with DeepSpeed, its memory away before each generated batch, and again with mistakes planted."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
from engine_state import handoff, whole
from trainer_cases import CASES, PLAIN, SHARE, Case, as_batch, samples_of
from training.jobs import common
from training.jobs.common import RANK
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from baton.errors import BatonError
from baton.training.grpo import trainer as trainer_module
from baton.training.grpo.batch import GeneratedBatch
from baton.training.grpo.micro_batch import MicroBatch
from baton.training.grpo.policy_model import Policy, build_policy
from baton.training.grpo.ranks import Ranks
from baton.training.grpo.shape import model_shape
from baton.training.grpo.trainer import Step, Trainer
from baton.training.holdings import Role
from baton.training.memory import TrainingMemory

SEGMENT_BYTES = int(os.environ["BATON_STANDIN_GRANULARITY"])
MODEL = Path(sys.argv[1])


def in_phase(memory: TrainingMemory, phase: AbstractContextManager[None], found: dict[str, Any]) -> Iterator[None]:
    # The middle of a storage of two segments lies in one that nothing else is in.
    large = [held for held in memory.holdings.of(Role.REFERENCE) if held.bytes >= 2 * SEGMENT_BYTES]
    middles = [held.address + held.bytes // 2 for held in large]
    with phase:
        found["readable_in_phase"] = bool(middles) and all(common.readable(address) for address in middles)
        yield
    found["away_after_phase"] = bool(middles) and not any(common.readable(address) for address in middles)


def code_of(model: Any, ids: torch.Tensor) -> str | None:
    try:
        model(input_ids=ids)
    except BatonError as error:
        return error.code
    return None


class OldLogprobs:
    """Listens to what the loss is given: old logprobs of the same samples, pass after pass."""

    def __init__(self) -> None:
        self._seen: dict[Any, torch.Tensor] = {}
        self.same = True
        self.compared = 0
        self.batch = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        right = trainer_module.policy_loss

        def heard(logprobs: torch.Tensor, micro: MicroBatch, *rest: Any) -> Any:
            assert micro.old_logprobs is not None
            key = (self.batch, micro.samples)
            if key in self._seen:
                self.compared += 1
                self.same &= torch.equal(self._seen[key], micro.old_logprobs)
            self._seen[key] = micro.old_logprobs.clone()
            return right(logprobs, micro, *rest)

        trainer_module.policy_loss = heard
        try:
            yield
        finally:
            trainer_module.policy_loss = right


def recorded(step: Step, engine: Any) -> dict[str, Any]:
    return {
        **{field.name: getattr(step, field.name) for field in dataclasses.fields(step) if field.name != "figures"},
        "figures": step.figures.report(),
        "parameters": whole(engine),
    }


def course(
    case: Case,
    memory: TrainingMemory,
    make: Callable[[int, Policy], GeneratedBatch],
    prepare: Callable[[Trainer, GeneratedBatch], None],
) -> dict[str, Any]:
    began = time.perf_counter()
    options = case.options(MODEL)
    set_seed(options.seed)
    with memory:
        policy = build_policy(options, model_shape(options))
    initial = whole(policy.engine, trained=False)
    memory.attach(policy.engine, policy.frozen)
    phases: list[dict[str, Any]] = []

    def phase() -> AbstractContextManager[None]:
        phases.append({})
        return contextmanager(in_phase)(memory, memory.reference(), phases[-1])

    trainer = Trainer(policy, options, Ranks.current(policy.device), phase)
    old = OldLogprobs()
    found: dict[str, Any] = {"initial": initial, "steps": [], "handoffs": [], "phases": phases, "outside": []}
    try:
        with old.listening():
            for old.batch in range(case.batches):
                found["handoffs"].append(handoff(memory, wait=old.batch % 2 == 0))
                batch = make(old.batch, policy)
                prepare(trainer, batch)
                if policy.frozen:
                    found["outside"].append(code_of(policy.frozen[0], torch.ones((1, 4), dtype=torch.int64)))
                for step in trainer.learn(batch):
                    found["steps"].append(recorded(step, policy.engine) | {"batch": old.batch})
    except BatonError as error:
        found["error"] = error.to_wire()
    memory.detach()
    policy.engine.destroy()
    return found | {"old_same": old.same, "old_compared": old.compared, "seconds": time.perf_counter() - began}


def generated(number: int, policy: Policy) -> GeneratedBatch:
    return as_batch(samples_of(number), RANK, int(policy.engine.global_steps))


# ---- mistakes ---------------------------------------------------------------------------------------------


@contextmanager
def changed(owner: Any, name: str, value: Any) -> Iterator[None]:
    right = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, right)


def old_logprobs_of_each_pass() -> AbstractContextManager[None]:
    return changed(Trainer, "needs_old_logprobs", False)


def padding_counted() -> AbstractContextManager[None]:
    everything = property(lambda micro: torch.ones_like(micro.completion_mask) & micro.trained[:, None])
    return changed(MicroBatch, "loss_mask", everything)


def one_ranks_normaliser() -> AbstractContextManager[None]:
    right = Ranks.sum
    # Counts are integers; figures and losses are not.
    return changed(Ranks, "sum", lambda self, values: values if values.dtype is torch.int64 else right(self, values))


def reference_that_learns() -> AbstractContextManager[None]:
    return changed(Policy, "as_reference", lambda self: nullcontext(self.engine))


def micro_batch_dropped() -> AbstractContextManager[None]:
    right = GeneratedBatch.micro_batches

    def dropping(batch: GeneratedBatch, rows: int) -> list[MicroBatch]:
        micros = right(batch, rows)
        # The logprobs are set from all of them, which is checked; the mistake is made afterwards.
        return micros if batch.old_logprobs is None else micros[:-1]

    return changed(GeneratedBatch, "micro_batches", dropping)


def rows_dropped() -> AbstractContextManager[None]:
    right = GeneratedBatch.micro_batches

    def dropping(batch: GeneratedBatch, rows: int) -> list[MicroBatch]:
        if batch.old_logprobs is None:
            return right(batch, rows)
        return [right(batch, rows - 1)[0], *right(batch, rows)[1:]]

    return changed(GeneratedBatch, "micro_batches", dropping)


def of_another_rank(number: int, policy: Policy) -> GeneratedBatch:
    """This rank's prompts and advantages, with the other's completions."""
    mine, other = (as_batch(samples_of(number), rank, int(policy.engine.global_steps)) for rank in (RANK, 1 - RANK))
    return GeneratedBatch(mine.prompts, other.completions, mine.advantages, other.trained, mine.weight_epoch)


def one_missing(number: int, policy: Policy) -> GeneratedBatch:
    whole = generated(number, policy)
    last = SHARE - 1
    return GeneratedBatch(
        whole.prompts, whole.completions[:last], whole.advantages[:last], whole.trained[:last], whole.weight_epoch
    )


def of_the_first_weights(number: int, _: Policy) -> GeneratedBatch:
    """As if nothing had been trained since."""
    return as_batch(samples_of(number), RANK, 0)


def twice(trainer: Trainer, batch: GeneratedBatch) -> None:
    trainer.prepare(batch)
    trainer.prepare(batch)


def mistakes(memory: TrainingMemory) -> Iterable[tuple[str, dict[str, Any]]]:
    for plant in (
        old_logprobs_of_each_pass,
        padding_counted,
        one_ranks_normaliser,
        reference_that_learns,
        micro_batch_dropped,
        rows_dropped,
    ):
        with plant():
            yield plant.__name__, course(PLAIN, memory, generated, Trainer.prepare)
    for make in (of_another_rank, one_missing, of_the_first_weights):
        yield make.__name__, course(PLAIN, memory, make, Trainer.prepare)
    yield "prepared_twice", course(PLAIN, memory, generated, twice)
    allowed = dataclasses.replace(PLAIN, stale=True)
    yield "stale_allowed", course(allowed, memory, of_the_first_weights, Trainer.prepare)


def main() -> None:
    disable_progress_bar()
    deepspeed.init_distributed("gloo")
    # Segments so small that a reference model has some of its own.
    memory = TrainingMemory(segment_bytes=SEGMENT_BYTES)
    wanted = sys.argv[2:]
    results: dict[str, Any] = {}
    # ZeRO-3 replaces torch's linear function in the whole process.
    for case in sorted(CASES, key=lambda case: -case.stage):
        if not wanted or case.name in wanted:
            results[case.name] = course(case, memory, generated, Trainer.prepare)
    if not wanted or "mistakes" in wanted:
        results |= mistakes(memory)
    torch.save(results, Path(os.environ["JOB_OUT"], f"rank{RANK}.pt"))
    common.finish({name: result["seconds"] for name, result in results.items()})


if __name__ == "__main__":
    main()
