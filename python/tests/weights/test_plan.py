"""What a copy plan puts into an engine's memory is what the engine's own load_weights would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Awkward, part_of, tiny_config, trainer_tensors
from partitions import execute, partition, raw, specs_of
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from baton.errors import BatonError
from baton.native import RUN
from baton.weights import plan as planning
from baton.weights.manifest import RankPieces, TensorSpec, sources_for
from baton.weights.recorder import record

CPU = torch.device("cpu")


def bits(model: torch.nn.Module) -> dict[str, bytes]:
    return {name: raw(parameter) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, 1),
        ({}, 2),
        ({}, 4),
        ({"tie_word_embeddings": False}, 2),
        ({"tie_word_embeddings": False, "num_key_value_heads": 2}, 4),
        ({"model_type": "llama", "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 64}, 3),
        ({"model_type": "llama", "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}, 2),
    ],
)
@pytest.mark.parametrize(("world", "stage"), [(3, 3), (8, 3), (2, 2)])
def test_replayed_copies_equal_load_weights(
    changes: dict[str, Any], size: int, dtype: torch.dtype, world: int, stage: int
) -> None:
    config = tiny_config(**changes)
    tensors = trainer_tensors(config, dtype)
    ranks, memories = partition(tensors, world, stage)
    covered = np.zeros(len(tensors))
    for rank in range(size):
        loaded, replayed = (part_of(config, rank, size, dtype) for _ in range(2))
        loaded.load_weights(tensors.items())
        sources = sources_for(rank % world, ranks)
        recording = record(replayed, ranks[0].tensors, CPU)
        for parameter in replayed.parameters():
            parameter.fill_(torch.nan)
        plan = planning.join(recording, sources)
        assert plan.fallback is None
        execute(plan, [memories[source.rank] for source in sources])
        assert bits(replayed) == bits(loaded)
        by_source = [int(plan.runs["bytes"][plan.runs["slot"] == slot].sum()) for slot in range(len(sources))]
        assert plan.source_bytes() == by_source
        assert sum(by_source) == plan.copy_bytes
        assert plan.copy_bytes + fill_bytes(plan) == sum(len(value) for value in bits(loaded).values())
        covered += planning.covered_elements(plan.items, len(tensors))
    sizes = np.array([tensor.numel() for tensor in tensors.values()])
    # Replicated tensors (norms, shared KV heads) are held a whole number of times.
    assert np.all(covered % sizes == 0)
    assert np.all(covered >= sizes)


def fill_bytes(plan: planning.Plan) -> int:
    return sum(fill.target.numel() * fill.target.element_size() for fill in plan.fills)


def test_checksum_items_name_the_elements_that_lie_there() -> None:
    config = tiny_config(num_key_value_heads=2)
    tensors = trainer_tensors(config, torch.float32)
    ranks, _ = partition(tensors, 3, 3)
    model = part_of(config, 3, 4, torch.float32)
    plan = planning.join(record(model, ranks[0].tensors, CPU), ranks)
    model.load_weights(tensors.items())
    flat = [tensor.reshape(-1).numpy() for tensor in tensors.values()]
    places = {p.data_ptr(): p.reshape(-1).numpy() for p in model.parameters()}
    for item in plan.items:
        base = max(address for address in places if address <= item["address"])
        at = (int(item["address"]) - base) // 4
        first, count = int(item["first_element"]), int(item["elements"])
        np.testing.assert_array_equal(places[base][at : at + count], flat[item["group"]][first : first + count])


@pytest.mark.parametrize("world", [1, 3])
def test_segments_are_those_that_hold_pieces(world: int) -> None:
    tensors = trainer_tensors(tiny_config(), torch.bfloat16)
    ranks, memories = partition(tensors, world, 3)
    for found, rank, memory in zip(planning.Pieces(ranks).segments(), ranks, memories, strict=True):
        touched = np.zeros(memory.size, dtype=bool)
        for offset, count in zip(rank.offset, rank.elements, strict=True):
            touched[offset : offset + 2 * count] = True
        expected = np.unique(np.flatnonzero(touched) // rank.segment_bytes)
        np.testing.assert_array_equal(found, expected)


@st.composite
def views(draw: Any):
    """How a loader might cut a [6, 8] target out of a larger source."""
    rows, columns = draw(st.integers(6, 9)), draw(st.integers(8, 12))
    top, left = draw(st.integers(0, rows - 6)), draw(st.integers(0, columns - 8))
    turned = draw(st.booleans())
    shape = (columns, rows) if turned else (rows, columns)
    world = draw(st.integers(1, 5))

    def load(target: Tensor, source: Tensor):
        source = source.t() if turned else source
        half = draw_half
        target[:half].copy_(source[top : top + half, left : left + 8])
        target[half:].copy_(source[top + half : top + 6, left : left + 8])

    draw_half = draw(st.integers(0, 6))
    return load, shape, world


@given(views())
@settings(max_examples=200, deadline=None)
def test_any_plain_view_is_replayed(case: Any) -> None:
    load, shape, world = case
    tensors = {"w": torch.randn(shape)}
    ranks, memories = partition(tensors, world, 3)
    loaded, replayed = Awkward(load), Awkward(load)
    loaded.load_weights(tensors.items())
    recording = record(replayed, specs_of(tensors), CPU)
    replayed.weight.fill_(torch.nan)
    plan = planning.join(recording, ranks)
    assert plan.fallback is None
    execute(plan, memories)
    assert bits(replayed) == bits(loaded)


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (lambda target, source: target.copy_(source * 2), "aten.mul"),
        (lambda target, source: target.copy_(source.to(torch.bfloat16).float()), "aten._to_copy"),
        (lambda target, source: target.copy_(torch.empty(6, 8).copy_(source)), "aten.copy_"),
        (lambda target, source: target.copy_(source.mul_(2)), "aten.mul_"),
        (lambda target, source: target.copy_(source).add_(1), "aten.add_"),
        (lambda target, source: torch.add(source, 1, out=target), "aten.add"),
        (lambda target, source: target.copy_(source.sort()[0]), "aten.sort"),
        (lambda target, source: target.copy_(torch.full((6, 8), float(source[0, 0]))), "a value of 'w' is read"),
        (lambda target, source: (target[:3].copy_(source[:3]), target[3:].copy_(target[:3])), "from another one"),
        (lambda target, source: (target.copy_(source), target[:2].copy_(source[:2])), "written twice"),
        (lambda target, source: (target.copy_(source), target[:2].fill_(0)), "filled after it was copied"),
    ],
)
def test_anything_but_copies_falls_back_with_the_reason(load: Any, reason: str) -> None:
    tensors = {"w": torch.randn(6, 8)}
    ranks, _ = partition(tensors, 2, 3)
    plan = planning.join(record(Awkward(load), specs_of(tensors), CPU), ranks)
    assert plan.fallback is not None
    assert reason in plan.fallback
    assert plan.runs.size == 0


def test_a_constant_beside_what_the_trainer_has_is_a_plan() -> None:
    """A table that an engine computes itself: it comes back with every sync, since sleep forgets it."""
    tensors = {"w": torch.randn(4, 8)}
    ranks, memories = partition(tensors, 2, 3)
    table = torch.arange(16.0).reshape(2, 8)

    def load(target: Tensor, source: Tensor):
        target[:4].copy_(source)
        target[4:].copy_(table)

    model = Awkward(load)
    plan = planning.join(record(model, specs_of(tensors), CPU), ranks)
    assert plan.fallback is None
    table.zero_()
    model.weight.fill_(torch.nan)
    execute(plan, memories)
    torch.testing.assert_close(model.weight.data, torch.cat((tensors["w"], torch.arange(16.0).reshape(2, 8))))


@pytest.mark.parametrize(("world", "stage", "size"), [(3, 3, 2), (2, 2, 1)])
def test_float32_is_rounded_to_the_engines_bfloat16(world: int, stage: int, size: int) -> None:
    config = tiny_config(num_key_value_heads=2)
    tensors = trainer_tensors(config, torch.float32)
    ranks, memories = partition(tensors, world, stage)
    for rank in range(size):
        loaded, replayed = (part_of(config, rank, size, torch.bfloat16) for _ in range(2))
        loaded.load_weights(tensors.items())
        recording = record(replayed, ranks[0].tensors, CPU)
        for parameter in replayed.parameters():
            parameter.fill_(torch.nan)
        sources = sources_for(rank % world, ranks)
        plan = planning.join(recording, sources)
        assert plan.fallback is None
        assert plan.rounded_tensors().tolist() == list(range(len(tensors)))
        execute(plan, [memories[source.rank] for source in sources])
        assert bits(replayed) == bits(loaded)
        assert set(plan.items["element_bytes"].tolist()) == {2}
        assert plan.copy_bytes + fill_bytes(plan) == sum(len(value) for value in bits(loaded).values())


def test_a_tensor_that_is_needed_rounded_and_as_it_is_falls_back() -> None:
    tensors = {"w": torch.randn(6, 8)}
    ranks, _ = partition(tensors, 2, 3)
    exact = torch.nn.Parameter(torch.zeros(6, 8), requires_grad=False)
    model = Awkward(lambda target, source: (target.copy_(source), exact.copy_(source)), dtype=torch.bfloat16)
    model.exact = exact
    plan = planning.join(record(model, specs_of(tensors), CPU), ranks)
    assert "'w' is copied as it is and rounded" in str(plan.fallback)


def test_a_parameter_that_not_even_load_weights_fills_is_an_error() -> None:
    """The fallback would leave it as it was: whatever memory holds after a sleep."""
    tensors = {"w": torch.randn(6, 8)}
    ranks, _ = partition(tensors, 2, 3)
    model = Awkward(lambda target, source: target[:4].copy_(source[:4] * 2))
    with pytest.raises(BatonError, match="'weight'") as error:
        planning.join(record(model, specs_of(tensors), CPU), ranks)
    assert error.value.code == "WEIGHTS_NOT_COVERED"
    assert "byte 128;" in error.value.found


def test_other_conversions_fall_back() -> None:
    tensors = {"w": torch.randn(6, 8).bfloat16()}
    ranks, _ = partition(tensors, 2, 3)
    plan = planning.join(record(Awkward(lambda t, s: t.copy_(s)), specs_of(tensors), CPU), ranks)
    assert "converted from torch.bfloat16 to torch.float32" in str(plan.fallback)


def test_large_rearrangement_falls_back() -> None:
    tensors = {"w": torch.randn(80, 80)}
    ranks, _ = partition(tensors, 2, 3)
    model = Awkward(lambda target, source: target.copy_(source.t()), (80, 80))
    plan = planning.join(record(model, specs_of(tensors), CPU), ranks)
    assert "element by element" in str(plan.fallback)


def test_a_fill_under_a_later_copy_is_a_plan() -> None:
    tensors = {"w": torch.randn(4, 8)}
    ranks, memories = partition(tensors, 2, 3)

    def load(target: Tensor, source: Tensor):
        target.fill_(7)
        target[:4].copy_(source)

    model = Awkward(load)
    recording = record(model, specs_of(tensors), CPU)
    model.weight.fill_(torch.nan)
    execute(planning.join(recording, ranks), memories)
    torch.testing.assert_close(model.weight.data, torch.cat((tensors["w"], torch.full((2, 8), 7.0))))


def around(hole: slice) -> Any:
    """Copies all rows but those of `hole`."""

    def load(target: torch.Tensor, source: torch.Tensor) -> None:
        target[: hole.start].copy_(source[: hole.start])
        target[hole.stop :].copy_(source[hole.stop :])

    return load


@pytest.mark.parametrize(("hole", "byte"), [(slice(0, 1), 0), (slice(2, 3), 64), (slice(5, 6), 160)])
def test_a_parameter_with_a_hole_is_an_error(hole: slice, byte: int) -> None:
    tensors = {"w": torch.randn(6, 8)}
    ranks, _ = partition(tensors, 2, 3)
    with pytest.raises(BatonError, match="'weight'") as error:
        planning.join(record(Awkward(around(hole)), specs_of(tensors), CPU), ranks)
    assert error.value.code == "WEIGHTS_NOT_COVERED"
    assert f"byte {byte};" in error.value.found
    assert "none of the trainer's names (1) is near" in error.value.found


def test_a_parameter_that_no_rank_has_is_named_with_the_names_that_are_near() -> None:
    tensors = {"model.other": torch.randn(6, 8), "model.weight": torch.randn(6, 8)}
    ranks, _ = partition(tensors, 2, 3)
    model = Awkward(lambda _target, _source: None)
    with pytest.raises(BatonError, match="'weight'") as error:
        planning.join(record(model, specs_of(tensors), CPU), ranks)
    assert error.value.code == "WEIGHTS_NOT_COVERED"
    assert "the nearest of the trainer's names: model.weight" in error.value.found


def test_runs_are_joined_only_where_both_sides_go_on() -> None:
    runs = np.array(
        [(0, 0, 0, 100, 4), (0, 0, 4, 104, 4), (0, 0, 8, 200, 4), (1, 0, 12, 204, 4), (1, 0, 20, 208, 4)],
        dtype=RUN,
    )
    joined = [(0, 0, 0, 100, 8), (0, 0, 8, 200, 4), (1, 0, 12, 204, 4), (1, 0, 20, 208, 4)]
    for order in (slice(None), slice(None, None, -1)):
        assert planning.merge_runs(runs[order]).tolist() == joined


def test_missing_piece_is_an_error() -> None:
    tensors = trainer_tensors(tiny_config(), torch.float32)
    ranks, _ = partition(tensors, 3, 3)
    with pytest.raises(BatonError) as error:
        planning.Pieces(ranks[:2])
    assert error.value.code == "PIECES_MISSING"


def test_replicated_pieces_are_read_once() -> None:
    tensors = {"w": torch.randn(6, 8)}
    ranks, memories = partition(tensors, 2, 2)
    both = [
        RankPieces(r.rank, r.gpu, 3, r.segment_bytes, r.tensors, r.tensor, r.start, r.elements, r.offset) for r in ranks
    ]
    model = Awkward(lambda target, source: target.copy_(source))
    plan = planning.join(record(model, specs_of(tensors), CPU), both)
    assert plan.copy_bytes == 6 * 8 * 4
    model.weight.fill_(torch.nan)
    execute(plan, memories)
    assert torch.equal(model.weight.data, tensors["w"])


def test_sources_are_the_own_rank_unless_partitioned() -> None:
    ranks, _ = partition({"w": torch.randn(2, 2)}, 4, 2)
    assert [rank.rank for rank in sources_for(2, ranks)] == [2]
    with pytest.raises(BatonError) as error:
        sources_for(7, ranks)
    assert error.value.code == "NO_SOURCE"
    ranks, _ = partition({"w": torch.randn(2, 2)}, 4, 3)
    assert [rank.rank for rank in sources_for(2, ranks)] == [0, 1, 2, 3]


def test_manifests_must_agree() -> None:
    ranks, _ = partition({"w": torch.randn(2, 2)}, 2, 3)
    other = partition({"v": torch.randn(2, 2)}, 2, 3)[0][1]
    with pytest.raises(BatonError) as error:
        sources_for(0, [ranks[0], other])
    assert error.value.code == "MANIFESTS_DIFFER"


def test_a_parameter_that_moves_falls_back() -> None:
    tensors = {"w": torch.randn(6, 8)}
    ranks, _ = partition(tensors, 2, 3)
    model = Awkward(lambda _, source: setattr(model.weight, "data", source.clone()))
    plan = planning.join(record(model, specs_of(tensors), CPU), ranks)
    assert "moves parameters" in str(plan.fallback)


def test_recording_keeps_no_scratch_tensor() -> None:
    """The memory of a recording is a few tensors, not a whole model."""
    seen = []
    alive = []

    def load(target: Tensor, source: Tensor):
        seen.append(StorageWeakRef(source.untyped_storage()))
        alive.append(sum(not reference.expired() for reference in seen))
        target.copy_(source)

    record(Awkward(load), [TensorSpec(f"w{i}", (6, 8), "float32") for i in range(50)], CPU)
    assert max(alive) <= 2
