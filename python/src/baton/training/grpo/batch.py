"""What one rank generated, kept on the CPU until it is used up, over all iterations and optimizer steps on it.

The old logprobs of GRPO (DeepSeekMath, arXiv 2402.03300, equation 3) are the policy's at generation. They belong to the
batch, not to an iteration: written again before each iteration, every ratio would be 1 and nothing would be clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baton.completion import Completion
from baton.errors import BatonError
from baton.training.grpo.micro_batch import MicroBatch, Row, padded


class GeneratedBatch:
    """Samples of one rank: prompts, completions with the engine's logprobs, and what training needs beside them.

    `prompts`: token ids, at least one each; `Completion.prompt` is a position among them. `advantages` [samples],
    `trained` [samples] (False: a failed sample, in no loss), both in the order of `completions`. All tensors are on
    the CPU. Raises BatonError BAD_GENERATED_BATCH.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Completion],
        advantages: Tensor,
        trained: Tensor,
        weight_epoch: int,
    ) -> None:
        self.prompts = [torch.tensor([int(token) for token in prompt], dtype=torch.int64) for prompt in prompts]
        self.completions = list(completions)
        self.advantages = advantages.detach().cpu().float().flatten()
        self.trained = trained.detach().cpu().bool().flatten()
        self.weight_epoch = weight_epoch
        self.lengths = [int(completion.tokens.size) for completion in self.completions]
        self._old: Tensor | None = None
        self._reference: Tensor | None = None
        self._check()

    def _check(self) -> None:
        samples = len(self.completions)
        sizes = {"advantages": len(self.advantages), "trained": len(self.trained)}
        problems = [f"{size} {name}" for name, size in sizes.items() if size != samples]
        problems += [f"prompt {i} is empty" for i, prompt in enumerate(self.prompts) if len(prompt) == 0]
        for i, completion in enumerate(self.completions):
            if not 0 <= completion.prompt < len(self.prompts):
                problems.append(f"completion {i} is of prompt {completion.prompt}")
            tokens, logprobs = completion.tokens.size, completion.logprobs.size
            if tokens != logprobs:
                problems.append(f"completion {i} has {tokens} tokens and {logprobs} logprobs")
        if not problems and not self.advantages[self.trained].isfinite().all():
            problems.append("an advantage of a trained sample is not finite")
        if problems:
            raise BatonError(
                "BAD_GENERATED_BATCH",
                "The parts of a generated batch do not fit together.",
                expected=f"{len(self.prompts)} prompts with tokens, {samples} completions of them with a logprob for"
                " each token, and a finite advantage for each that is trained on",
                found="; ".join(problems[:5]),
                action="Give the prompts and completions of one rollout, and one advantage for each completion.",
            )

    def check_epoch(self, expected: int, allow: bool = False) -> None:
        """Raises BatonError STALE_COMPLETION when weights of another epoch than `expected` made a completion."""
        found = {self.weight_epoch, *(completion.weight_epoch for completion in self.completions)}
        if found != {expected} and not allow:
            raise BatonError(
                "STALE_COMPLETION",
                "Completions of other weights than the policy's would be trained on.",
                expected=f"weight epoch {expected}",
                found=f"weight epochs {', '.join(map(str, sorted(found)))}",
                action="Generate anew after each batch, or allow stale completions in the options when they are meant.",
            )

    @property
    def old_logprobs(self) -> Tensor | None:
        """Float32 [tokens of all completions, one after another]: the trainer's at generation; None before set."""
        return self._old

    @property
    def reference_logprobs(self) -> Tensor | None:
        """As `old_logprobs`, of the reference model."""
        return self._reference

    def set_old_logprobs(self, micros: Sequence[MicroBatch], logprobs: Sequence[Tensor]) -> None:
        """Keeps the trainer's logprobs, a tensor [rows, length - 1] for each micro-batch; together all samples, once.

        Raises BatonError OLD_LOGPROBS_SET the second time, LOGPROBS_INCOMPLETE.
        """
        if self._old is not None:
            raise BatonError(
                "OLD_LOGPROBS_SET",
                "The old logprobs of this generated batch are set already.",
                expected="one setting for all iterations on a batch",
                found="a second one, which would make every probability ratio 1",
                action="Set them once, before the first optimizer step on the batch; not in each iteration.",
            )
        self._old = self._gathered(micros, logprobs)

    def set_reference_logprobs(self, micros: Sequence[MicroBatch], logprobs: Sequence[Tensor]) -> None:
        """Like `set_old_logprobs`, of the reference model; may be set again. Raises BatonError LOGPROBS_INCOMPLETE."""
        self._reference = self._gathered(micros, logprobs)

    def _gathered(self, micros: Sequence[MicroBatch], logprobs: Sequence[Tensor]) -> Tensor:
        pieces: dict[int, Tensor] = {}
        for micro, values in zip(micros, logprobs, strict=True):
            values = values.detach().cpu().float()
            mask = micro.completion_mask.cpu()
            if values.shape != mask.shape:
                raise self._incomplete(f"logprobs {list(values.shape)} for a micro-batch {list(mask.shape)}")
            pieces |= {sample: row[kept] for sample, row, kept in zip(micro.samples, values, mask, strict=True)}
        found = {sample: len(piece) for sample, piece in pieces.items()}
        if found != dict(enumerate(self.lengths)) or sum(len(micro.samples) for micro in micros) != len(found):
            raise self._incomplete(f"{len(found)} samples in {sum(len(micro.samples) for micro in micros)} rows")
        return torch.cat([torch.zeros(0), *(pieces[sample] for sample in range(len(pieces)))])

    def _incomplete(self, found: str) -> BatonError:
        return BatonError(
            "LOGPROBS_INCOMPLETE",
            "The logprobs are not those of all samples of this generated batch.",
            expected=f"each of {len(self.lengths)} samples once, a logprob for each of its tokens",
            found=found,
            action="Give the tensors of all of the batch's own micro_batches(), in their order.",
        )

    def micro_batches(self, micro_batch: int, *, sort: bool = False) -> list[MicroBatch]:
        """All samples, `micro_batch` rows at a time; the last has what remains.

        `sort`: by length, so that less is padding. Without it the samples keep their order.
        """
        rows = self._rows()
        if sort:
            rows.sort(key=lambda row: len(row.prompt) + len(row.completion))
        return [padded(rows[begin : begin + micro_batch]) for begin in range(0, len(rows), micro_batch)]

    def _rows(self) -> list[Row]:
        old = self._old.split(self.lengths) if self._old is not None else None
        reference = self._reference.split(self.lengths) if self._reference is not None else None
        return [
            Row(
                sample=sample,
                prompt=self.prompts[completion.prompt],
                completion=torch.from_numpy(completion.tokens.astype(np.int64)),
                trained=self.trained[sample],
                advantage=self.advantages[sample],
                engine=torch.from_numpy(completion.logprobs.astype(np.float32)),
                old=old[sample] if old is not None else None,
                reference=reference[sample] if reference is not None else None,
            )
            for sample, completion in enumerate(self.completions)
        ]

    def state(self) -> dict[str, Any]:
        """Tensors and ints only, for torch.save and torch.load(weights_only=True). The other way: `from_state`."""
        completions, nothing = self.completions, torch.zeros(0)
        numbers = [
            [each.prompt, each.sample, int(each.finish == "stop"), each.weight_epoch, each.tokens.size]
            for each in completions
        ]
        state: dict[str, Any] = {
            "weight_epoch": self.weight_epoch,
            "prompt_lengths": torch.tensor([len(prompt) for prompt in self.prompts], dtype=torch.int64),
            "prompt_tokens": torch.cat([nothing.long(), *self.prompts]),
            "completions": torch.tensor(numbers, dtype=torch.int64).reshape(-1, 5),
            "tokens": torch.cat([nothing.long(), *(row.completion for row in self._rows())]),
            "engine_logprobs": torch.cat([nothing, *(row.engine for row in self._rows())]),
            # Clones: a state must not change when the batch does.
            "advantages": self.advantages.clone(),
            "trained": self.trained.clone(),
        }
        state |= {} if self._old is None else {"old_logprobs": self._old.clone()}
        return state | ({} if self._reference is None else {"reference_logprobs": self._reference.clone()})

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> GeneratedBatch:
        numbers: list[list[int]] = state["completions"].tolist()
        lengths = [row[-1] for row in numbers]
        pieces = zip(state["tokens"].split(lengths), state["engine_logprobs"].split(lengths), strict=True)
        completions = [
            Completion(
                prompt=prompt,
                sample=sample,
                tokens=tokens.numpy().astype(np.uint32),
                logprobs=logprobs.numpy().astype(np.float32),
                finish="stop" if stopped else "length",
                weight_epoch=epoch,
            )
            for (prompt, sample, stopped, epoch, _), (tokens, logprobs) in zip(numbers, pieces, strict=True)
        ]
        prompts = [prompt.tolist() for prompt in state["prompt_tokens"].split(state["prompt_lengths"].tolist())]
        batch = cls(prompts, completions, state["advantages"], state["trained"], int(state["weight_epoch"]))
        for name, key in (("_old", "old_logprobs"), ("_reference", "reference_logprobs")):
            values = state.get(key)
            if values is not None and len(values) != sum(lengths):
                raise batch._incomplete(f"{len(values)} {key} for {sum(lengths)} tokens in a saved state")
            setattr(batch, name, None if values is None else values.clone())
        return batch
