"""The policy as DeepSpeed trains it, and the model that its KL divergence is measured from."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from transformers import AutoModelForCausalLM
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from baton.training.grpo.deepspeed_config import deepspeed_config, reference_config
from baton.training.grpo.options import GrpoOptions
from baton.training.grpo.shape import ModelShape, adapted


@dataclass(frozen=True)
class Policy:
    """`engine` is DeepSpeed's. `frozen`: the reference model; none with LoRA, where it is the policy itself."""

    engine: Any
    frozen: tuple[Any, ...]
    has_adapter: bool

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @contextmanager
    def as_reference(self) -> Generator[Any]:
        """The model to compute reference logprobs with, inside of the block."""
        if not self.has_adapter:
            yield self.frozen[0]
            return
        with self.engine.module.disable_adapter():
            yield self.engine


def build_policy(options: GrpoOptions, shape: ModelShape) -> Policy:
    """Loads the model and makes DeepSpeed's engine. Inside of Baton's training memory, which is to hold all of it.

    Collective. Under ZeRO-3 the weights are partitioned as they are loaded.
    """
    config = deepspeed_config(options, shape)
    # transformers looks at the configuration through a weak reference while it loads.
    partitioned = HfDeepSpeedConfig(config) if options.zero_stage == 3 else None
    model = _loaded(options)
    if options.lora is not None:
        model = adapted(model, options)
    if options.gradient_checkpointing:
        _checkpoint_activations(model, options)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=options.learning_rate,
        betas=options.betas,
        weight_decay=options.weight_decay,
        fused=torch.cuda.is_available() or None,
    )
    rising: Any = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda made: options.learning_rate_at(made + 1) / options.learning_rate
    )
    engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=config, lr_scheduler=rising)[0]
    frozen: tuple[Any, ...] = ()
    if options.beta > 0 and options.lora is None:
        frozen = (_reference(options, shape, engine.device),)
    del partitioned
    return Policy(engine, frozen, options.lora is not None)


def _loaded(options: GrpoOptions) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype), attn_implementation=options.attention
    )


def _checkpoint_activations(model: Any, options: GrpoOptions) -> None:
    # Without reentrance torch compares what is computed again with what was saved, and ZeRO-3 has partitioned
    # parameters again in between.
    reentrant = options.zero_stage == 3
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant and options.lora is not None:
        model.enable_input_require_grads()  # else no input of a checkpointed layer needs a gradient


def _reference(options: GrpoOptions, shape: ModelShape, device: torch.device) -> Any:
    """The policy as it started; partitioned over the ranks where the policy is."""
    model = _loaded(options).eval().requires_grad_(False)
    if options.zero_stage != 3:
        return model.to(device)
    engine: Any = deepspeed.initialize(model=model, config=reference_config(options, shape))[0]
    engine.module.eval()
    return engine
