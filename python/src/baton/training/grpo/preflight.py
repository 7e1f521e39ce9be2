"""`python -m baton.training.grpo.preflight --ranks N --folder DIR [--model-length N]`: a plan, before any GPU is used.

Reads the recipe's `grpo` part as JSON from standard input. Writes a file from which the ranks work (at last
OUTPUT/grpo.json), and one line of JSON to standard output: `{"optionsFile", "problems", "heldOut", "resumeAt",
"facts"}`, or `{"error": {...}}` with exit code 1. `facts`: what must be the same on every node, beside the recipe, by
name. With `--describe` it prints the help of all options instead.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from baton.errors import BatonError
from baton.output_folder import not_writable
from baton.training.grpo.options import describe

FILE = "grpo.json"
#: Until the ranks have read it: another start in the same folder, which will be refused, must not write over it. Every
#: node of a run has a draft of its own, and all may write into one folder.
_DRAFT = ".grpo-"


def _say(text: str) -> None:
    print(f"baton: {text}", file=sys.stderr, flush=True)


def preflight(grpo: dict[str, Any], folder: Path, ranks: int, model_length: int | None) -> dict[str, Any]:
    """Makes the plan and writes it down. Raises BatonError."""
    from baton.training.grpo.checkpoint_folder import problems_digest
    from baton.training.grpo.plan import make_plan
    from baton.training.grpo.reward_trial import try_rewards

    plan = make_plan(grpo, folder, ranks, model_length, _say)
    if plan.options.try_rewards:
        try_rewards(plan.rewards, [each.problem for each in plan.problems])
    output = Path(plan.options.output)
    if plan.options.resume == "auto" and plan.checkpoint is None:
        _say(f"there is no whole checkpoint in {output / 'checkpoints'}: the run starts anew")
    file = output / f"{_DRAFT}{socket.gethostname()}-{os.getpid()}.json"
    try:
        output.mkdir(parents=True, exist_ok=True)
        written = {"grpo": grpo, "folder": str(folder.resolve()), "modelLength": model_length}
        file.write_text(json.dumps(written, indent=2) + "\n")
    except OSError as error:
        raise not_writable(file, error) from error
    return {
        "optionsFile": str(file.resolve()),
        "problems": len(plan.problems),
        "heldOut": len(plan.held_out),
        "resumeAt": None if plan.checkpoint is None else plan.checkpoint.step,
        "facts": {
            "problems": plan.identity["problems"],
            "held-out problems": problems_digest(plan.held_out),
            "reward functions": ", ".join(each.described() for each in plan.rewards.functions),
            "weights to start from": plan.identity["start"],
            "checkpoint to go on from": "none" if plan.checkpoint is None else f"step {plan.checkpoint.step}",
        },
    }


def settle(file: Path) -> None:
    """Gives the options of a run that has begun their name for people. Once a node, when every rank has read them."""
    if file.name.startswith(_DRAFT):
        file.replace(file.with_name(FILE))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m baton.training.grpo.preflight")
    parser.add_argument("--describe", action="store_true", help="print the help of all options")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(), help="of the recipe")
    parser.add_argument("--model-length", type=int, default=None, help="tokens of the longest prompt and completion")
    arguments = parser.parse_args()
    if arguments.describe:
        print(describe())
        return 0
    try:
        result = preflight(json.load(sys.stdin), arguments.folder, arguments.ranks, arguments.model_length)
    except BatonError as error:
        print(json.dumps({"error": error.to_wire()}), flush=True)
        return 1
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
