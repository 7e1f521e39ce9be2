"""The sums in examples/data: as the script there makes them, and none of the held-out ones among the others."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_they_are_what_the_script_makes() -> None:
    script = runpy.run_path(str(EXAMPLES / "sums.py"))
    for name, problems, count in (
        ("sums", script["training_problems"](), script["TRAINING"]),
        ("sums-held-out", script["held_out_problems"](), script["HELD_OUT"]),
    ):
        assert (EXAMPLES / f"data/{name}.jsonl").read_text() == script["lines"](problems[:count])


def test_no_pair_of_numbers_is_in_both() -> None:
    pairs = []
    for name in ("sums", "sums-held-out"):
        rows = [json.loads(line) for line in (EXAMPLES / f"data/{name}.jsonl").read_text().splitlines()]
        assert all(str(eval(row["sum"])) == row["answer"] for row in rows)
        pairs.append({frozenset(row["sum"].replace("-", "+").split(" + ")) for row in rows})
    assert pairs[0].isdisjoint(pairs[1])


def test_the_reward_of_ones_own() -> None:
    first_number = runpy.run_path(str(EXAMPLES / "rewards.py"))["first_number"]
    completions = [" 85.\nand 1", "85", "8 5", "850", "is 85", ""]
    assert first_number(completions, ["85"] * 6) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
