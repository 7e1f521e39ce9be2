"""Logprobs of given tokens under a model, without a copy of all logits in fp32.

At a vocabulary of 150,000 the logits of a micro-batch are the largest tensor of a training step. They are kept in the
model's dtype, once; what needs fp32 is done on some positions at a time, in the backward pass too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 512  # positions in fp32 at once: 0.3 GB at a vocabulary of 150,000


def token_logprobs(
    model: Any, ids: Tensor, attention_mask: Tensor, temperature: float, *, entropy: bool = False, chunk: int = CHUNK
) -> tuple[Tensor, Tensor | None]:
    """Logprobs fp32 [rows, length - 1] of ids [rows, length], position t being for token t + 1; and the entropies.

    `temperature` (above 0) divides the logits: with it the values are comparable to those of an engine that sampled
    at it. Padding must be on the right, where no token before it attends to it: positions need no correction; what
    stands at padding is finite and means nothing. `entropy`: also that of each whole distribution, in nats,
    [rows, length - 1], without a gradient. `chunk` is how many positions are in fp32 at once.
    """
    output = model(input_ids=ids, attention_mask=attention_mask, use_cache=False)
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    # The last position predicts nothing that is given. It is cut off after, not before: a slice of the logits would
    # cost a second copy of them in the backward pass.
    following = ids.roll(-1, dims=1)
    logprobs, entropies = _Logprobs.apply(logits, following, float(temperature), entropy, chunk)  # pyright: ignore
    return logprobs[:, :-1], entropies[:, :-1] if entropy else None


class _Logprobs(torch.autograd.Function):
    """log softmax(logits / temperature) at the given tokens: gather minus logsumexp, and its gradient, in chunks."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tensor, temperature: float, entropy: bool, chunk: int
    ) -> tuple[Tensor, Tensor | None]:
        flat, wanted = logits.reshape(-1, logits.shape[-1]), tokens.reshape(-1, 1)
        logprobs, norms, entropies = [], [], []
        for begin in range(0, flat.shape[0], chunk):
            scaled = _scaled(flat[begin : begin + chunk], temperature)
            norm = scaled.logsumexp(dim=-1, keepdim=True)
            logprobs.append(scaled.gather(-1, wanted[begin : begin + chunk]) - norm)
            norms.append(norm)
            if entropy:
                # -sum p log p, where p log p is 0 for p = 0 (a logit of -inf).
                probabilities = scaled.sub_(norm).exp_()
                entropies.append(-torch.special.xlogy(probabilities, probabilities).sum(dim=-1))
        ctx.save_for_backward(logits, tokens, torch.cat(norms))
        ctx.temperature, ctx.chunk = temperature, chunk
        found = torch.cat(entropies).view(tokens.shape) if entropy else None
        if found is not None:
            ctx.mark_non_differentiable(found)
        return torch.cat(logprobs).view(tokens.shape), found

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        logits, tokens, norms = ctx.saved_tensors
        flat, wanted, outer = logits.reshape(-1, logits.shape[-1]), tokens.reshape(-1, 1), gradients[0].reshape(-1, 1)
        result = torch.empty_like(flat)
        for begin in range(0, flat.shape[0], ctx.chunk):
            part = slice(begin, begin + ctx.chunk)
            # d logprob / d logit = (1 at the token - probability) / temperature
            slope = (_scaled(flat[part], ctx.temperature) - norms[part]).exp_().neg_()
            slope.scatter_add_(-1, wanted[part], torch.ones_like(norms[part]))
            result[part] = slope.mul_(outer[part] / ctx.temperature)
        return result.view(logits.shape), None, None, None, None


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """In fp32 at least, before the division: bf16 logits would be rounded a second time by it."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
