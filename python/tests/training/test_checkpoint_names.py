"""A policy's parameters as the tensors of a checkpoint: the names and values that `save_pretrained` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from baton.training.checkpoint_names import Part, checkpoint_parts
from baton.training.manifest import Piece, split

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "mixtral": {"num_local_experts": 3},
    "qwen2": {},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},  # its checkpoints have all experts in one tensor too
}


def small_model(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **EXPERTS[kind]))


@pytest.mark.parametrize("kind", EXPERTS)
def test_names_and_values_are_those_that_a_checkpoint_has(kind: str, tmp_path: Path) -> None:
    model = small_model(kind)
    parameters = dict(model.named_parameters())
    parts = checkpoint_parts(model, {name: tuple(each.shape) for name, each in parameters.items()})
    found = {
        part.name: parameters[name].detach().reshape(-1)[part.first : part.first + part.elements].view(part.shape)
        for name, several in parts.items()
        for part in several
    }
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], value) for name, value in saved.items())
    assert (len(found) > len(parameters)) == (kind in ("qwen3_moe", "mixtral"))


@pytest.mark.parametrize(
    "written",
    [
        lambda probe: {"other": probe.flip(0)},
        lambda probe: {"other": probe.transpose(-1, -2)},
        lambda probe: {"other": probe[1:]},
        lambda probe: {"one": probe[:2], "two": probe[1:]},
        lambda _: {},
    ],
)
def test_a_parameter_stays_whole_where_its_rows_are_written_otherwise(
    written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "transformers.core_model_loading.revert_weight_conversion", lambda _, probes: written(probes["weight"])
    )
    assert checkpoint_parts(small_model("qwen2"), {"weight": (3, 2)}) == {"weight": [Part("weight", 0, 6, (3, 2))]}


def test_what_is_no_model_of_transformers_has_the_names_that_it_has() -> None:
    assert checkpoint_parts(torch.nn.Linear(2, 3), {"weight": (3, 2)}) == {"weight": [Part("weight", 0, 6, (3, 2))]}


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    ranks=st.integers(1, 5),
    element_bytes=st.sampled_from([2, 4]),
)
def test_the_pieces_of_all_ranks_are_every_element_of_every_part_once(
    sizes: list[int], ranks: int, element_bytes: int
) -> None:
    total = sum(sizes)
    parts, first = [], 0
    for number, size in enumerate(sizes):
        parts.append(Part(f"part{number}", first, size, (size,)))
        first += size
    share = -(-total // ranks)
    seen: list[tuple[int, int]] = []
    for rank in range(ranks):
        start = rank * share
        elements = min(share, total - start)
        if elements <= 0:
            continue
        base = 1000 * rank
        for piece in split(Piece(7, start, elements, base), parts, element_bytes):
            part = parts[piece.tensor - 7]
            for position in range(piece.elements):
                element = part.first + piece.start + position
                # At the place where the rank has this element of the whole parameter.
                assert piece.offset_bytes + position * element_bytes == base + (element - start) * element_bytes
                seen.append((piece.tensor, piece.start + position))
    assert sorted(seen) == [(7 + number, position) for number, size in enumerate(sizes) for position in range(size)]
