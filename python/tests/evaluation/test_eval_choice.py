"""Which engine generates, on which GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eval_cases import error_of, options
from transformers import Qwen2Config

from baton.engines.vllm import versions
from baton.evaluation import choice
from baton.evaluation.choice import Choice, choose

CONFIG = Qwen2Config(num_attention_heads=12)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes it one with so many GPUs and this vLLM."""

    def made(gpus: int, vllm: str | None = "0.26.0") -> None:
        monkeypatch.setattr(choice, "visible_gpus", lambda: [str(number) for number in range(gpus)])
        monkeypatch.setattr(versions, "_installed", lambda: vllm)

    return made


def chosen(problems: int = 100, **changes: Any) -> Choice:
    return choose(options(Path(), **changes), CONFIG, problems)


def test_vllm_where_it_can_run(machine: Any) -> None:
    machine(gpus=1)
    assert chosen() == Choice("vllm", ["0"], 256)
    assert chosen(engine="transformers", batch_size=3) == Choice("transformers", ["0"], 3)
    machine(gpus=0)
    assert chosen().devices == [""]
    assert "no GPU" in chosen().why
    machine(gpus=1, vllm=None)
    assert (chosen().engine, chosen().devices) == ("transformers", ["0"])
    assert "not installed" in chosen().why


def test_as_many_engines_as_there_are_gpus_and_problems_for(machine: Any) -> None:
    machine(gpus=5)
    assert chosen().devices == ["0", "1", "2", "3", "4"]
    assert chosen(tp=2).devices == ["0,1", "2,3"]
    assert chosen(tp=4).devices == ["0,1,2,3"]
    assert chosen(problems=2).devices == ["0", "1"]


def test_what_cannot_be(machine: Any) -> None:
    machine(gpus=5)
    error_of(lambda: chosen(tp=6), "GPUS_TOO_FEW")
    assert "12" in error_of(lambda: chosen(tp=5), "BAD_OPTIONS").expected
    error_of(lambda: chosen(tp=2, engine="transformers"), "BAD_OPTIONS")
    machine(gpus=5, vllm="0.11.0")
    error_of(chosen, "VLLM_VERSION")
    machine(gpus=5, vllm=None)
    error_of(lambda: chosen(engine="vllm"), "VLLM_MISSING")
    machine(gpus=0)
    error_of(lambda: chosen(engine="vllm"), "VLLM_NEEDS_GPU")
