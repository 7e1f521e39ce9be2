from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grpo_cases import make_model
from torch.utils._python_dispatch import TorchDispatchMode

from baton.training.grpo.policy import _Logprobs, token_logprobs


class Fixed(torch.nn.Module):
    """Answers with given logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, **_: Any) -> Any:
        return SimpleNamespace(logits=self.logits * 1)


def plain(logits: torch.Tensor, ids: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    every = (logits[:, :-1].float() / temperature).log_softmax(dim=-1)
    return every.gather(-1, ids[:, 1:, None]).squeeze(-1), -(every.exp() * every).sum(dim=-1)


@pytest.mark.parametrize("chunk", [1, 4, 7, 1000])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients(chunk: int, temperature: float, dtype: torch.dtype) -> None:
    torch.manual_seed(chunk)
    model = Fixed((torch.randn(3, 6, 11) * 3).to(dtype))
    ids = torch.randint(0, 11, (3, 6))
    weights = torch.randn(3, 5)
    expected, entropy = plain(model.logits, ids, temperature)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), model.logits)
    found, entropies = token_logprobs(model, ids, torch.ones_like(ids), temperature, entropy=True, chunk=chunk)
    (gradient,) = torch.autograd.grad((found * weights).sum(), model.logits)
    assert found.dtype == torch.float32
    assert entropies is not None
    assert not entropies.requires_grad
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(entropies, entropy)
    torch.testing.assert_close(gradient, wanted, atol=1e-6 if dtype == torch.float32 else 1e-2, rtol=1e-2)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(0, 5, (2, 3))
    assert torch.autograd.gradcheck(lambda x: _Logprobs.apply(x, tokens, 0.7, False, 2)[0], (logits,))


def test_entropy_of_impossible_tokens() -> None:
    logits = torch.tensor([[[0.0, 0.0, -torch.inf]] * 2])
    ids = torch.tensor([[0, 1]])
    _, entropy = token_logprobs(Fixed(logits), ids, ids, 1.0, entropy=True)
    assert entropy is not None
    torch.testing.assert_close(entropy, torch.tensor([[2.0]]).log())


def test_no_entropy_unless_asked_for() -> None:
    ids = torch.tensor([[0, 1]])
    assert token_logprobs(Fixed(torch.zeros(1, 2, 3)), ids, ids, 1.0)[1] is None


class LargestInFp32(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
            self.largest = max(self.largest, result.numel())
        return result


def test_never_all_logits_in_fp32() -> None:
    model = Fixed(torch.randn(4, 16, 32).bfloat16())
    ids = torch.randint(0, 32, (4, 16))
    with LargestInFp32() as mode:
        token_logprobs(model, ids, torch.ones_like(ids), 0.9, entropy=True, chunk=8)[0].sum().backward()
    assert 0 < mode.largest <= 8 * 32


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_padding_changes_nothing(kind: str) -> None:
    model = make_model(kind)
    ids = torch.tensor([[3, 4, 5, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        padded, _ = token_logprobs(model, ids, mask, 0.7)
        alone, _ = token_logprobs(model, ids[:, :3], mask[:, :3], 0.7)
    assert padded.isfinite().all()
    torch.testing.assert_close(padded[:, :2], alone)
