"""Weights are told apart wherever they differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton.weights_digest import weights_digest

MIB = 1 << 20


@pytest.mark.parametrize("place", [0, 1.5, 5, 8.99], ids="at {} MiB".format)
def test_a_tensor_that_differs_is_seen(tmp_path: Path, place: float) -> None:
    whole = bytearray(9 * MIB)
    file = tmp_path / "model.safetensors"
    file.write_bytes(whole)
    before = weights_digest(tmp_path)
    assert weights_digest(tmp_path) == before
    begin = int(place * MIB)
    # As of a layer that was trained: some megabytes, or what is left of the file.
    end = min(len(whole), begin + 4 * MIB)
    whole[begin:end] = b"\1" * (end - begin)
    file.write_bytes(whole)
    assert weights_digest(tmp_path) != before


def test_names_and_sizes_count(tmp_path: Path) -> None:
    for name, size in (("a", 10), ("b", 10), ("c", 11)):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"model-{name != 'a'}.safetensors").write_bytes(bytes(size))
    assert len({weights_digest(tmp_path / name) for name in "abc"}) == 3
