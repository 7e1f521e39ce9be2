"""Runs TRL's own tests of its GRPOTrainer with BatonGRPOTrainer in its place, as the one rank of a run.

    git clone --branch v1.16.0 https://github.com/huggingface/trl CHECKOUT
    test/trl/run.sh CHECKOUT [--stock] [words for pytest]

Every test makes a trainer of its own. In one process they follow one another as engines of one training: the weight
epoch goes on from trainer to trainer, because a run's never falls. Tests that do not apply are skipped with the reason
that not_applicable.py gives. `--stock`: TRL's trainer itself, to see which tests pass on this machine at all.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
import trl
from not_applicable import reason
from trl import import_utils
from trl.trainer import grpo_config

STOCK = "--stock" in sys.argv


class Config(grpo_config.GRPOConfig):
    """Without a GPU the tests' arguments lack what a user would give."""

    def __init__(self, *args: Any, **named: Any) -> None:
        if not torch.cuda.is_available():
            alone = {} if "RANK" in os.environ else {"ddp_backend": None}
            named = {"use_cpu": True, "bf16": False, "ddp_backend": "gloo", "report_to": "none"} | alone | named
        super().__init__(*args, **named)


def put_baton_in_place() -> None:
    import baton.trl.trainer as ours
    from baton.training.current import current

    attach = ours.attach
    behind = [0]
    trainers: list[Any] = []

    def attach_next(engine: Any, frozen: Any = ()) -> Any:
        memory = current()
        assert memory is not None
        if memory.engine is not None:
            behind[0] = int(memory.engine.global_steps)
            memory.detach()
        engine.global_steps += behind[0]
        return attach(engine, frozen)

    class Trainer(ours.BatonGRPOTrainer):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            trainers.append(self)

    ours.attach = attach_next  # pyright: ignore
    ours.GRPOConfig = Config  # pyright: ignore
    trl.GRPOTrainer = Trainer


def know_neighbours() -> None:
    """Tests of a neighbouring version ask for optional packages that this TRL does not know."""

    def available(name: str) -> Any:
        match = re.fullmatch(r"is_(\w+)_available", name)
        if match is None:
            raise AttributeError(name)
        return lambda: importlib.util.find_spec(match[1]) is not None

    vars(import_utils)["__getattr__"] = available


class Plugin:
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            names = getattr(item, "fixturenames", [])
            if "cleanup_vllm_dist_env" in names:  # it takes the run's process group for one of vLLM's
                names.remove("cleanup_vllm_dist_env")
            why = None if STOCK else reason(item.nodeid)
            if why is not None:
                item.add_marker(pytest.mark.skip(reason=why))


def main() -> int:
    words = [word for word in sys.argv[1:] if word != "--stock"]
    checkout = Path(words[0]).resolve()
    os.chdir(os.environ["SUITE_HUB"])
    know_neighbours()
    trl.GRPOConfig = Config
    grpo_config.GRPOConfig = Config
    if not STOCK:
        deepspeed.init_distributed(None if torch.cuda.is_available() else "gloo")
        put_baton_in_place()
    sys.path.insert(0, str(checkout))
    tests = checkout / "tests/test_grpo_trainer.py"
    return int(pytest.main([str(tests), "--rootdir", str(checkout), "-p", "no:cacheprovider", *words[1:]], [Plugin()]))


if __name__ == "__main__":
    sys.exit(main())
