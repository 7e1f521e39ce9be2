"""`python -m baton.evaluation PARENT`: what `baton eval` runs.

Options as JSON in, the summary as a line of JSON out, or `{"error": {...}}` with exit code 1. Everything that can be
refused is, before an engine is started.
"""

from __future__ import annotations

import json
import sys

import msgspec

from baton.errors import BatonError
from baton.evaluation.judging import Judges
from baton.evaluation.options import EvalOptions
from baton.evaluation.plan import make_plan
from baton.evaluation.running import evaluate
from baton.parent import die_with


def _say(text: str) -> None:
    print(f"baton: {text}", file=sys.stderr, flush=True)


def main() -> int:
    die_with(int(sys.argv[1]))
    options = msgspec.json.decode(sys.stdin.buffer.read(), type=EvalOptions)
    try:
        with Judges(options.judge_deadline) as judges:
            summary = evaluate(make_plan(options, judges, _say), judges, _say)
    except BatonError as error:
        print(json.dumps({"error": error.to_wire()}), flush=True)
        return 1
    print(json.dumps(summary), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
