"""GRPO with everything: what `baton grpo RECIPE.yaml` runs on every rank, and the whole loop to read or to copy.

The parts are in `baton.training.grpo`. What a recipe says stands in the file that `baton grpo` has checked and written:

    baton run recipe.yaml -- torchrun --nproc_per_node 8 -m baton.examples.train_grpo --options baton-out/grpo.json
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

import baton
from baton.training.grpo.checkpoints import Checkpoints, Progress
from baton.training.grpo.logs import RunLog
from baton.training.grpo.plan import Plan, read_plan
from baton.training.grpo.policy_model import build_policy
from baton.training.grpo.preflight import settle
from baton.training.grpo.ranks import Ranks
from baton.training.grpo.sampler import Answers, Metrics, Sampler
from baton.training.grpo.trainer import Step, Trainer


class Clock:
    """Seconds of this rank by phase, since they were last taken."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Generator[None]:
        began = time.perf_counter()
        yield
        self.add(phase, time.perf_counter() - began)

    def add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def take(self) -> dict[str, float]:
        taken, self._seconds = self._seconds, {}
        return {f"time/{phase}": seconds for phase, seconds in taken.items()}


class Run:
    """One rank of a run."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.options = plan, plan.options
        set_seed(self.options.seed)  # a new adapter begins the same on every rank
        # Everything that leaves the GPUs during generation is made inside of this block.
        with baton.training_memory():
            self.policy = build_policy(self.options, plan.shape)
            self.ranks = Ranks.current(self.policy.device)
            torch.manual_seed(self.options.seed * 1_000_003 + self.ranks.rank)  # dropout is not the same
            self.checkpoints = Checkpoints(plan, self.policy, self.ranks)
            self.progress = self.checkpoints.load()
        # From here on the rank takes part in handoffs; a reference model is saved to the host only once.
        self.session = baton.attach(self.policy.engine, frozen=self.policy.frozen)
        self.sampler = Sampler(plan, self.ranks)
        self.trainer = Trainer(self.policy, self.options, self.ranks, self.session.reference)
        self.clock = Clock()
        resume_at = None if plan.checkpoint is None else plan.checkpoint.step + 1
        self.log = RunLog(Path(self.options.output), enabled=self.ranks.first, resume_at=resume_at)

    def train(self) -> None:
        """The whole loop: generate a batch, judge it, use it `num_iterations` times."""
        while self.progress.number < self.options.batches:
            number, batch = self.progress.number, self.progress.batch
            if batch is None:
                answers = self.generate(number)
                with self.clock("reward"):
                    batch, metrics = self.sampler.judge(answers)
                with self.clock("logprobs"):
                    self.trainer.prepare(batch)  # old and reference logprobs: the batch's, not a pass's
                self.report_batch(number, metrics)
            for step in self.trainer.learn(batch, self.progress.position):
                self.report_step(step)
                used_up = step.position == self.trainer.passes
                self.progress = Progress(number + 1) if used_up else Progress(number, step.position, batch)
                if self.checkpoints.due(step.number):
                    self.checkpoints.save(step.number, self.progress)
            # Where steps span generated batches, one may end without a step.
            self.progress = Progress(number + 1)
        if self.plan.held_out:
            self.evaluate()
        self.checkpoints.save_model(Path(self.options.output) / "model")

    def generate(self, number: int) -> Answers:
        """Inside of the rollout the GPUs belong to the engines, which have the weights of the last optimizer step."""
        held_out: Answers | None = None
        began = time.perf_counter()
        with self.session.rollout() as rollout:
            self.clock.add("to_generation", time.perf_counter() - began)
            if self.evaluation_due(number):
                with self.clock("evaluate"):
                    held_out = self.sampler.ask_held_out(rollout)
            with self.clock("generate"):
                answers = self.sampler.ask(rollout, number)
            began = time.perf_counter()
        self.clock.add("to_training", time.perf_counter() - began)
        if held_out is not None:
            self.report_held_out(number, self.sampler.judge_held_out(held_out))
        return answers

    def evaluation_due(self, number: int) -> bool:
        every = self.options.evaluate_every
        return bool(self.plan.held_out) and number % (every or self.options.batches) == 0

    def evaluate(self) -> None:
        """After the last step."""
        with self.session.rollout() as rollout:
            answers = self.sampler.ask_held_out(rollout)
        self.report_held_out(self.options.batches, self.sampler.judge_held_out(answers))

    # ---- what there is to say ---------------------------------------------------------------------------

    def report_held_out(self, number: int, metrics: Metrics) -> None:
        self.log.write(self.session.weight_epoch, metrics)
        self.tell(number, heldOut=metrics["held_out/mean"])

    def report_batch(self, number: int, metrics: Metrics) -> None:
        """Under the number of the step that is trained on it first."""
        times = self.clock.take()
        tokens = metrics["completion/tokens"] or 0.0
        metrics |= times | {"batch": number + 1.0, "tokens_per_second/generation": tokens / times["time/generate"]}
        self.log.write(self.session.weight_epoch + 1, metrics)
        self.tell(number + 1, reward=metrics["reward/mean"])

    def report_step(self, step: Step) -> None:
        figures = step.figures.report()
        metrics = {f"policy/{name}": value for name, value in figures.items()}
        metrics |= {
            "iteration": float(step.iteration),
            "loss": step.loss,
            "gradient_norm": step.gradient_norm,
            "learning_rate": step.learning_rate,
            "time/train": step.seconds,
            "tokens_per_second/training": (figures["tokens"] or 0.0) / step.seconds,
        }
        self.log.write(step.number, metrics)
        self.tell(self.progress.number + 1, loss=step.loss, kl=figures["kl"], clipFraction=figures["clipFraction"])

    def tell(self, number: int, **values: float | None) -> None:
        """For Baton's own progress line and report; what is unknown is left out."""
        self.session.log(number, **{name: value for name, value in values.items() if value is not None})


def main() -> None:
    parser = argparse.ArgumentParser(description="One rank of `baton grpo`.")
    parser.add_argument("--options", type=Path, required=True, help="the file that `baton grpo` wrote")
    arguments = parser.parse_args()
    disable_progress_bar()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # what DeepSpeed asks
    deepspeed.init_distributed()
    rank, ranks = dist.get_rank(), dist.get_world_size()

    def say(text: str) -> None:
        if rank == 0:
            print(f"baton: {text}", file=sys.stderr, flush=True)

    run = Run(read_plan(arguments.options, ranks, say))
    if os.environ["LOCAL_RANK"] == "0":  # building the policy was collective, so all have read them
        settle(arguments.options)
    with run.log:
        run.train()
    run.session.finish()  # the run has reached its end, and did not just stop
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
