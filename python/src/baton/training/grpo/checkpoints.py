"""Saving a run and going on from it, at any optimizer step: in the middle of a generated batch too.

DeepSpeed's part has parameters, masters, moments and the scheduler. Each rank adds its place in the generated batch,
the batch itself with its old logprobs (they cannot be computed again: the policy is another by then), and the state of
its random numbers, which dropout uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from baton.training.grpo import checkpoint_folder as folders
from baton.training.grpo.batch import GeneratedBatch
from baton.training.grpo.plan import Plan
from baton.training.grpo.policy_model import Policy
from baton.training.grpo.ranks import Ranks


@dataclass(frozen=True)
class Progress:
    """Where a run stands. `batch`: the generated batch in use, None when `number` has not been generated yet."""

    number: int = 0
    position: int = 0
    batch: GeneratedBatch | None = None


class Checkpoints:
    """Of one run. All methods are collective."""

    def __init__(self, plan: Plan, policy: Policy, ranks: Ranks) -> None:
        self._plan, self._policy, self._ranks = plan, policy, ranks
        self._options = plan.options

    def due(self, step: int) -> bool:
        """Whether optimizer step `step` is followed by a checkpoint."""
        every = self._options.checkpoint_every
        return every is not None and step % every == 0

    def load(self) -> Progress:
        """Goes on from the plan's checkpoint, if it has one. Inside of the training memory."""
        found = self._plan.checkpoint
        if self._ranks.first:
            folders.set_aside(self._options, 0 if found is None else found.step)
        self._ranks.barrier()
        if found is None:
            return Progress()
        self._policy.engine.load_checkpoint(
            str(found.folder),
            tag=folders.DEEPSPEED,
            # With an adapter only that was saved: the base comes from the model's folder.
            load_module_strict=not self._policy.has_adapter,
        )
        self._take_options()
        path = folders.rank_file(found.folder, self._ranks.rank)
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        torch.set_rng_state(state["rng"])
        if "cuda_rng" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda_rng"])
        batch = state.get("batch")
        return Progress(found.batch, found.position, None if batch is None else GeneratedBatch.from_state(batch))

    def _take_options(self) -> None:
        """What was loaded has the learning rate, betas and weight decay of the run that saved it."""
        options, engine = self._options, self._policy.engine
        for group in engine.optimizer.param_groups:
            group["initial_lr"] = options.learning_rate
            group["lr"] = options.learning_rate_at(int(engine.global_steps) + 1)
            group["betas"] = tuple(options.betas)
            group["weight_decay"] = options.weight_decay
        engine.lr_scheduler.base_lrs = [options.learning_rate] * len(engine.lr_scheduler.base_lrs)

    def save(self, step: int, progress: Progress) -> Path:
        """Saves everything after optimizer step `step`. A checkpoint is whole, or not there for `resume: auto`."""
        folder = folders.folder_of(self._options, step)
        if self._ranks.first:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / folders.DESCRIPTION).unlink(missing_ok=True)  # half of it overwritten must not look whole
        self._ranks.barrier()
        self._policy.engine.save_checkpoint(
            str(folder),
            tag=folders.DEEPSPEED,
            save_latest=False,
            exclude_frozen_parameters=self._policy.has_adapter,
        )
        state: dict[str, Any] = {"rng": torch.get_rng_state()}
        if self._policy.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state()
        if progress.batch is not None:
            state["batch"] = progress.batch.state()
        torch.save(state, folders.rank_file(folder, self._ranks.rank))
        self.save_model(folder / folders.MODEL)
        self._ranks.barrier()
        if self._ranks.first:
            folders.describe(folder, self._plan.identity, step, progress.number, progress.position)
            folders.prune(self._options)
        return folder

    def save_model(self, folder: Path) -> None:
        """The policy, or its adapter, and the tokenizer, as `from_pretrained` reads them."""
        engine = self._policy.engine
        weights: dict[str, Any] | None = None
        if engine.zero_optimization_partition_weights():
            weights = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=self._policy.has_adapter)
        if not self._ranks.first:
            return
        engine.module.save_pretrained(str(folder), state_dict=weights)
        self._plan.tokenizer.save_pretrained(str(folder))
