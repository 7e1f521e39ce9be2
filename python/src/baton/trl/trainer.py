"""TRL's GRPOTrainer whose completions come from Baton's engines, on the GPUs that it trains on.

TRL does everything else: data, rewards, loss, logs, checkpoints. What is added is where its training state is built
(inside Baton's training memory), when the ranks join the run, and where completions come from.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch.distributed as dist
from torch import nn
from trl.trainer import grpo_trainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from baton import joining
from baton.errors import BatonError
from baton.session import Session, attach
from baton.training.current import training_memory
from baton.training.memory import local_rank
from baton.trl.generation import BatonGeneration, require_training
from baton.trl.options import check_lengths, honoured, of_the_recipe

logger = logging.getLogger(__name__)
_SIGNATURE = inspect.signature(GRPOTrainer.__init__)


class BatonGRPOTrainer(GRPOTrainer):
    """Takes what GRPOTrainer takes. To be run by `baton run RECIPE.yaml -- accelerate launch …`, with DeepSpeed.

    Raises BatonError UNSUPPORTED_TRL_OPTION for options that Baton cannot honour, and NO_CONTROLLER outside of a run.
    """

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: GRPOConfig | None = None, *more: Any, **named: Any
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = GRPOConfig(f"{name.rstrip('/').split('/')[-1]}-GRPO")
        given = _SIGNATURE.bind(self, model, reward_funcs, args, *more, **named).arguments
        try:
            args = honoured(args, given)
        except BatonError as error:
            joining.decline(local_rank(), error)
            raise
        self._session: Session | None = None
        # Joining the run first: engines and model are never built at the same time.
        with training_memory(), _in_place_of_vllm():
            check_lengths(args, joining.join(local_rank()).welcome.max_model_length)
            super().__init__(model, reward_funcs, args, *more, **named)
        if self._is_vlm:
            raise BatonError(
                "UNSUPPORTED_TRL_OPTION",
                "The model takes images, which Baton's engines are not given.",
                expected="a tokenizer as processing_class",
                found=type(self.processing_class).__name__,
                action="Train a text model, or use TRL's own trainer.",
            )
        if self.accelerator.is_main_process:
            for line in of_the_recipe(args):
                logger.warning(line)

    @property
    def baton_session(self) -> Session | None:
        """This rank's part in the run; None before the training has begun."""
        return self._session

    # ---- building and joining ---------------------------------------------------------------------------

    def train(self, *args: Any, **named: Any) -> Any:
        """As TRL's. Once: DeepSpeed's engine is built in it, and a run has one. Raises BatonError WRONG_STATE."""
        if self._session is not None:
            raise BatonError(
                "WRONG_STATE",
                "train() was called a second time.",
                expected="one training in a run",
                found="a DeepSpeed engine that is part of the run already",
                action="Start another run with resume_from_checkpoint.",
            )
        result = super().train(*args, **named)
        # Not before: a rank that leaves in the middle of the training is an error.
        joining.finish_at_exit(self._finish)
        return result

    def evaluate(self, *args: Any, **named: Any) -> Any:
        """As TRL's, once training has begun: before, there is no engine. Raises BatonError NOT_TRAINING."""
        require_training(self._session)
        return super().evaluate(*args, **named)

    def predict(self, *args: Any, **named: Any) -> Any:
        """As `evaluate`."""
        require_training(self._session)
        return super().predict(*args, **named)

    def _prepare_for_training(self, *args: Any, **named: Any) -> Any:
        """Where transformers makes DeepSpeed's engine and loads a checkpoint into it."""
        with training_memory():
            prepared = super()._prepare_for_training(*args, **named)
        eos_token_ids: Any = self.eos_token_ids
        self._session = attach(self.model_wrapped, frozen=self._frozen())
        self._generation.connect(
            self._session,
            stop_token_ids=eos_token_ids,
            seed=self.args.seed,
            timeout_seconds=self.args.ddp_timeout,
        )
        return prepared

    def _frozen(self) -> list[Any]:
        """Modules that are used and never trained: the reference model, and reward models."""
        reference = [] if self.ref_model is None else [self.ref_model]
        return reference + [reward for reward in self.reward_funcs if isinstance(reward, nn.Module)]

    def _finish(self) -> None:
        """When the script ends in good order; it may have evaluated or saved after the training."""
        if self._session is not None and not self._session.closed:
            self._session.finish()
        if dist.is_initialized():  # gloo's threads abort a process that ends with them
            dist.destroy_process_group()

    @property
    def _generation(self) -> BatonGeneration:
        generation: Any = self.vllm_generation
        return generation

    # ---- generation -------------------------------------------------------------------------------------

    def _generate(self, prompts: list[Any]) -> Any:
        """One handoff for all turns of the conversations."""
        model: Any = self.model
        self._generation.evaluating = not model.training
        with self._generation.turns() if self.tools else nullcontext():
            return super()._generate(prompts)

    def _tool_call_loop(self, *args: Any, **named: Any) -> Any:
        found = super()._tool_call_loop(*args, **named)
        with self._generation.turns() as turns:
            turns.leave()
        return found

    # ---- what is on the GPU only in its phase -----------------------------------------------------------

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **named: Any) -> Any:
        with self._reference() if model is self.ref_model else nullcontext():
            return super()._get_per_token_logps_and_entropies(model, *args, **named)

    def _calculate_rewards(self, *args: Any, **named: Any) -> Any:
        with self._reference() if any(isinstance(each, nn.Module) for each in self.reward_funcs) else nullcontext():
            return super()._calculate_rewards(*args, **named)

    def _reference(self) -> Any:
        return nullcontext() if self._session is None else self._session.reference()

    # ---- figures ----------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *args: Any, **named: Any) -> None:
        super().log(logs, *args, **named)
        if self._session is not None and not self._session.closed:
            values = {name: logs[key] for key, name in _FIGURES.items() if isinstance(logs.get(key), (int, float))}
            if values:
                self._session.log(self.state.global_step, **values)


#: TRL's names of the figures that Baton's progress line and report show, and Baton's.
_FIGURES = {
    "reward": "reward",
    "eval_reward": "heldOut",
    "loss": "loss",
    "kl": "kl",
    "clip_ratio/region_mean": "clipFraction",
}


@contextmanager
def _in_place_of_vllm() -> Generator[None]:
    """Inside of this block TRL's trainer builds BatonGeneration where it would build VLLMGeneration."""
    names = grpo_trainer.__dict__
    original = names["VLLMGeneration"]
    names["VLLMGeneration"] = BatonGeneration
    try:
        yield
    finally:
        names["VLLMGeneration"] = original
