"""SmolLM2-135M-Instruct learns sums with GRPO: by TRL with its own vLLM on the same GPU (colocate), or by Baton.

    accelerate launch --config_file zero2.yaml trl_train.py --model FOLDER --out FOLDER --trainer trl
    baton run recipe.yaml -- accelerate launch --config_file zero2.yaml trl_train.py … --trainer baton

Without a GPU the second uses a stand-in, and the first generates with transformers.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from datasets import Dataset
from smollm2 import chat, judge
from transformers import AutoTokenizer, TrainerCallback
from trl_meter import Meter
from trl import GRPOConfig, GRPOTrainer

from baton.examples.arithmetic import Problem, held_out_problems, training_problems


def rows(problems: list[Problem], asked: Callable[[Problem], str]) -> Dataset:
    return Dataset.from_list([{"prompt": asked(each), "sum": each.prompt, "answer": each.answer} for each in problems])


def right(completions: list[str], answer: list[str], **more: Any) -> list[float]:
    sums = more["sum"]
    return [judge(Problem(one, two), text) for one, two, text in zip(sums, answer, completions, strict=True)]


class Clock(TrainerCallback):
    """Tells the meter when training and its steps begin and end."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._meter.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._meter.step_ended()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._meter.end()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trainer", choices=("trl", "baton"), required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--vllm-share", type=float, default=0.3, help="of the GPU's memory, for TRL's own vLLM")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    if not gpu:
        deepspeed.init_distributed("gloo")  # else accelerate would not find the other ranks
    config = GRPOConfig(
        output_dir=str(options.out / "output"),
        bf16=True,
        use_cpu=not gpu,
        ddp_backend=None if gpu else "gloo",
        use_vllm=gpu,
        vllm_mode="colocate",
        vllm_enable_sleep_mode=True,
        vllm_gpu_memory_utilization=options.vllm_share,
        vllm_max_model_length=128,
        max_completion_length=8,
        num_generations=8,
        per_device_train_batch_size=128,
        per_device_eval_batch_size=512,
        steps_per_generation=2,
        gradient_accumulation_steps=1,
        learning_rate=2e-5,
        max_steps=options.steps,
        eval_strategy="steps",
        eval_steps=options.steps,
        eval_on_start=True,
        num_generations_eval=1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    problems = list(training_problems())
    random.Random(0).shuffle(problems)
    # A model that knows no chat goes on with "37+48=".
    asked = chat if AutoTokenizer.from_pretrained(options.model).chat_template else lambda problem: problem.prompt
    meter = Meter()
    given: dict[str, Any] = {
        "model": options.model,
        "reward_funcs": right,
        "args": config,
        "train_dataset": rows(problems, asked),
        "eval_dataset": rows(list(held_out_problems())[:512], asked),
        "callbacks": [Clock(meter)],
    }
    if options.trainer == "baton":
        from baton.trl import BatonGRPOTrainer

        trainer: GRPOTrainer = BatonGRPOTrainer(**given)
    else:
        trainer = GRPOTrainer(**given)
    meter.wrap(trainer)
    trainer.train()
    if trainer.accelerator.is_main_process:
        report = {
            **{"log": trainer.state.log_history, "steps": meter.steps, "peaks": meter.peaks},
            "evaluations": meter.evaluations,
        }
        (options.out / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
