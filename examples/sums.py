"""Makes data/sums.jsonl and data/sums-held-out.jsonl: little sums to train on, and others to judge by.

    PYTHONPATH=python/src .venv/bin/python examples/sums.py

Columns: `prompt` as the tiny model of the demo reads it, `sum` as people write it, `answer`. No pair of numbers is in
both files, the other way round neither.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from baton.examples.arithmetic import Problem, held_out_problems, training_problems

TRAINING, HELD_OUT = 2048, 512
FOLDER = Path(__file__).parent / "data"


def lines(problems: Sequence[Problem]) -> str:
    rows = [
        {
            "prompt": problem.prompt,
            "sum": re.sub("([+-])", r" \1 ", problem.prompt.removesuffix("=")),
            "answer": problem.answer,
        }
        for problem in problems
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "sums.jsonl").write_text(lines(training_problems()[:TRAINING]))
    (FOLDER / "sums-held-out.jsonl").write_text(lines(held_out_problems()[:HELD_OUT]))
