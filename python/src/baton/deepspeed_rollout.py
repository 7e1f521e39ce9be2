"""Baton behind DeepSpeed's own rollout interface (`deepspeed.runtime.rollout`, DeepSpeed 0.19).

    engine, *_ = deepspeed.initialize(...)              # inside baton.training_memory()
    rollout = BatonRollout(baton.attach(engine), tokenizer)
    batch = rollout.generate(RolloutRequest(prompt_ids, prompt_attention_mask), SamplingConfig(max_new_tokens=64))

A loop that is written for `HybridEngineRollout` changes in the line that makes the rollout engine. Each `generate` is a
handoff of the GPUs; several calls in a `with rollout.handoff():` share one.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.runtime.rollout.base import RolloutBatch, RolloutEngine, RolloutRequest, SamplingConfig

from baton.completion import Completion, Sampling
from baton.errors import BatonError
from baton.rollout import Rollout
from baton.session import Session


class BatonRollout(RolloutEngine):
    """A rollout engine whose weights are always those of the last optimizer step. Collective, as the session is."""

    name = "baton"

    def __init__(
        self, session: Session, tokenizer: Any, *, stop_token_ids: Sequence[int] | None = None, seed: int | None = None
    ) -> None:
        """`tokenizer`: of it only pad_token_id and eos_token_id are used. `stop_token_ids`: None for the tokenizer's
        end of text alone. `seed`: of the first call, the next ones count on from it; None: drawn anew for each call."""
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        if pad is None:
            raise BatonError(
                "NO_PAD_TOKEN",
                "Completions of different lengths cannot be put into one tensor.",
                expected="a tokenizer with pad_token_id or eos_token_id",
                found="neither",
                action="Set tokenizer.pad_token.",
            )
        end = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        self._session = session
        self._pad = int(pad)
        self._stop = end if stop_token_ids is None else tuple(stop_token_ids)
        self._seed = seed
        self._open: Rollout | None = None
        #: Of the last call, in the order of its rows: with the engine's logprobs and the weight epoch.
        self.completions: list[Completion] = []

    @contextmanager
    def handoff(self) -> Generator[None]:
        """The engines have the GPUs in this block, for any number of `generate` calls."""
        with self._session.rollout() as rollout:
            self._open = rollout
            try:
                yield
            finally:
                self._open = None

    def generate(self, request: RolloutRequest, sampling: SamplingConfig) -> RolloutBatch:
        """Prompts [B, T_p] to prompts and responses [B * n, T_p + T_r], T_r the longest response of this rank.

        Rows are ordered by prompt, then by sample. A response keeps the token that stopped it; what comes after is
        padding, with 0 in the attention mask. `continuous_batch_size` means nothing here: engines batch by themselves.
        Raises BatonError BAD_PROMPT, BAD_SAMPLING.
        """
        wanted = self._sampling(sampling)
        ids, mask = request.prompt_ids.cpu(), request.prompt_attention_mask.cpu().bool()
        if not bool(mask[:, -1:].all()):
            raise BatonError(
                "BAD_PROMPT",
                "The prompts are padded on the right, so that responses would not follow them.",
                expected="prompts that end in the last column: padding on the left",
                found=f"{int((~mask[:, -1]).sum())} of {len(mask)} rows with padding there",
                action='Tokenize with padding_side="left".',
            )
        prompts = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
        if self._open is not None:
            completions = self._open.generate(prompts, wanted)
        else:
            with self._session.rollout() as rollout:
                completions = rollout.generate(prompts, wanted)
        self.completions = completions
        return self._batch(ids, mask, completions, request.prompt_ids.device)

    def sync_weights(self, step: int) -> None:
        """Nothing to do: every handoff takes the policy's weights over, and checks them."""

    def shutdown(self) -> None:
        """Ends this rank's part in the run in good order."""
        self._session.finish()

    def _sampling(self, wanted: SamplingConfig) -> Sampling:
        seed, self._seed = self._seed, None if self._seed is None else self._seed + 1
        return Sampling(
            max_tokens=wanted.max_new_tokens,
            n=wanted.n_samples_per_prompt,
            temperature=max(0.0, wanted.temperature),
            top_k=max(0, wanted.top_k),
            top_p=wanted.top_p,
            stop_token_ids=self._stop,
            seed=seed,
        )

    def _batch(
        self, ids: torch.Tensor, mask: torch.Tensor, completions: Sequence[Completion], device: torch.device
    ) -> RolloutBatch:
        begin = ids.shape[1]
        rows = torch.tensor([each.prompt for each in completions], dtype=torch.long)
        longest = max((each.tokens.size for each in completions), default=0)
        answers = torch.full((len(completions), longest), self._pad, dtype=ids.dtype)
        counted = torch.zeros((len(completions), longest), dtype=torch.long)
        for row, each in enumerate(completions):
            answers[row, : each.tokens.size] = torch.from_numpy(each.tokens.astype("int64"))
            counted[row, : each.tokens.size] = 1
        return RolloutBatch(
            input_ids=torch.cat([ids[rows], answers], dim=1).to(device),
            attention_mask=torch.cat([mask[rows].long(), counted], dim=1).to(device),
            response_start_idx=torch.full((len(completions),), begin, dtype=torch.long, device=device),
        )
