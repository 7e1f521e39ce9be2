"""What BatonGRPOTrainer has in the place of TRL's VLLMGeneration: the same calls, answered by Baton's engines.

TRL's trainer syncs weights and generates; here a rollout is both, so `sync_weights` has nothing to do and `generate`
hands the GPUs over. Every completion then has the weights of the last optimizer step, and Baton has proven it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from baton.completion import MOST_SEED, Completion, Sampling
from baton.errors import BatonError
from baton.rollout import Rollout
from baton.session import Session
from baton.trl.options import sampling_of

#: Per completion: token ids, and for each token a list with the logprob of the sampled one.
Answer = tuple[list[list[int]], list[list[int]], list[list[list[float]]], None]


def require_training(session: Session | None) -> Session:
    """Raises BatonError NOT_TRAINING."""
    if session is None:
        raise BatonError(
            "NOT_TRAINING",
            "Generation was asked for before there was a DeepSpeed engine with an optimizer.",
            expected="trainer.train() first; GRPOConfig(eval_on_start=True) evaluates before the first step",
            found="trainer.evaluate() or generation before trainer.train()",
            action="Evaluate within or after the training.",
        )
    return session


class BatonGeneration:
    """Takes the arguments of TRL 1.16's VLLMGeneration; those that Baton's recipe decides are not looked at."""

    def __init__(
        self,
        *,
        temperature: float,
        top_k: int | None,
        top_p: float,
        min_p: float | None,
        max_completion_length: int,
        generation_kwargs: dict[str, Any] | None,
        **_: Any,
    ) -> None:
        self._settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        self._settings["max_tokens"] = max_completion_length
        self._generation_kwargs = generation_kwargs or {}
        self._stop_token_ids: tuple[int, ...] = ()
        self._seed = 0
        self._session: Session | None = None
        self._turns: _Turns | None = None
        self._group: Any = None
        self._epoch, self._calls = -1, {False: 0, True: 0}
        #: Set before each call: evaluations have seeds of their own, so that training draws the same without them.
        self.evaluating = False
        #: TRL looks up here how long a prompt may be.
        self.llm: Any = None

    def connect(self, session: Session, *, stop_token_ids: Sequence[int], seed: int, timeout_seconds: float) -> None:
        """From now on `generate` works. Collective.

        `timeout_seconds`: how long the ranks wait for each other between two turns of a conversation.
        """
        self._session, self._stop_token_ids, self._seed = session, tuple(stop_token_ids), seed
        model_config = SimpleNamespace(max_model_len=session.max_model_length)
        self.llm = SimpleNamespace(llm_engine=SimpleNamespace(model_config=model_config))
        if dist.is_initialized() and dist.get_world_size() > 1:
            # On the host: during a rollout the GPUs are the engines'.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))

    def sync_weights(self) -> None:
        """Nothing: entering a rollout takes the weights over, also when TRL believes that they have not changed."""

    def generate(
        self,
        prompts: list[list[int]],
        images: list[Any] | None,
        num_generations: int,  # noqa: ARG002  # each prompt comes as often as it has completions
        profiler: AbstractContextManager[Any] | None = None,
    ) -> Answer:
        """One completion of each of this rank's prompts, in their order. Collective.

        Raises BatonError NOT_TRAINING before the training has begun, and UNSUPPORTED_TRL_OPTION for images.
        """
        if images is not None:
            raise BatonError(
                "UNSUPPORTED_TRL_OPTION",
                "The prompts have images.",
                expected="prompts of tokens",
                found="images",
                action="Train on text, or use TRL's own trainer.",
            )
        with profiler or nullcontext():
            if self._turns is not None:
                completions = self._turns.ask(prompts)
            else:
                with self._attached.rollout() as rollout:
                    completions = self._ask(rollout, prompts)
        tokens = [completion.tokens.tolist() for completion in completions]
        logprobs = [[[value] for value in completion.logprobs.tolist()] for completion in completions]
        return prompts, tokens, logprobs, None

    @contextmanager
    def turns(self) -> Generator[_Turns]:
        """All calls of `generate` inside of this block are one handoff, on however many turns each rank needs."""
        if self._turns is not None:
            yield self._turns
            return
        with ExitStack() as stack:
            self._turns = turns = _Turns(self, stack, self._group)
            try:
                yield turns
                turns.leave()
            finally:
                self._turns = None

    @property
    def _attached(self) -> Session:
        return require_training(self._session)

    def _ask(self, rollout: Rollout, prompts: list[list[int]]) -> list[Completion]:
        return rollout.generate(prompts, self._next_sampling(rollout.weight_epoch))

    def _next_sampling(self, epoch: int) -> Sampling:
        """The same on every rank, because calls are collective; and other samples at every call."""
        if epoch != self._epoch:
            self._epoch, self._calls = epoch, {False: 0, True: 0}
        text = struct.pack("<QQQ?", self._seed % 2**64, epoch, self._calls[self.evaluating], self.evaluating)
        self._calls[self.evaluating] += 1
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") % (MOST_SEED + 1)
        return sampling_of(self._settings, self._generation_kwargs, self._stop_token_ids, seed)


class _Turns:
    """The turns of one conversation. A rank whose own have all ended still takes part, without prompts, until those
    of the others have."""

    def __init__(self, generation: BatonGeneration, stack: ExitStack, group: Any) -> None:
        self._generation, self._stack, self._group = generation, stack, group
        self._rollout: Rollout | None = None
        self._left = False

    def ask(self, prompts: list[list[int]]) -> list[Completion]:
        self._anyone(True)
        return self._generation._ask(self._open(), prompts)

    def leave(self) -> None:
        """This rank has no more turns; returns when no rank has, and the GPUs are back."""
        if self._left:
            return
        self._left = True
        while self._anyone(False):
            self._generation._ask(self._open(), [])
        self._stack.close()

    def _open(self) -> Rollout:
        if self._rollout is None:
            self._rollout = self._stack.enter_context(self._generation._attached.rollout())
        return self._rollout

    def _anyone(self, mine: bool) -> bool:
        """Whether any rank has another turn. Collective."""
        if self._group is None:
            return mine
        wish = torch.tensor(int(mine))
        dist.all_reduce(wish, op=dist.ReduceOp.MAX, group=self._group)
        return bool(wish)
