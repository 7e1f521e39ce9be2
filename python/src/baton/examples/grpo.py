"""GRPO on little sums: every GPU trains (DeepSpeed) and generates (Baton's engines) in turn.

    baton run recipe.yaml -- accelerate launch --use_deepspeed --num_processes 8 -m baton.examples.grpo --zero 3

Any launcher, any number of ranks, ZeRO stage 1, 2 or 3. What Baton needs of a training script is marked (1) to (4).
The rest is GRPO as usual: several samples of each problem, advantages normalised within that group, a clipped
objective over several iterations on one batch, and a KL penalty that holds the policy near the model it started as.
"""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer

import baton
from baton.examples.arithmetic import Problem, held_out_problems, reward, training_problems


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parent / "tiny_model"), help="folder of the policy")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the policy")
    parser.add_argument("--zero", type=int, choices=(1, 2, 3), default=3, help="ZeRO stage")
    parser.add_argument("--steps", type=int, default=12, help="batches; each makes --iterations optimizer steps")
    parser.add_argument("--iterations", type=int, default=2, help="optimizer steps on each batch")
    parser.add_argument("--problems", type=int, default=64, help="problems of a batch, over all ranks")
    parser.add_argument("--samples", type=int, default=8, help="answers to each problem")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--clip", type=float, default=0.2, help="how far a token's probability ratio may move")
    parser.add_argument("--kl", type=float, default=0.02, help="weight of the KL penalty")
    parser.add_argument("--held-out", type=int, default=512, help="problems, never trained on, to judge by")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the problems, and of the samples")
    return parser.parse_args(arguments)


def deepspeed_config(options: argparse.Namespace, rows: int) -> dict[str, Any]:
    """Buckets of 2^18 elements fit this model; DeepSpeed's defaults are for models a thousand times as large."""
    zero = {"stage": options.zero, "reduce_bucket_size": 2**18, "allgather_bucket_size": 2**18}
    if options.zero == 3:
        # All of this model's tensors are below the default threshold: each rank would keep them whole.
        zero |= {"stage3_prefetch_bucket_size": 2**18, "stage3_param_persistence_threshold": 0}
    return {
        "train_micro_batch_size_per_gpu": rows,
        "gradient_clipping": 1.0,
        "zero_optimization": zero,
        "bf16": {"enabled": options.dtype == "bfloat16"},
        "steps_per_print": 2**31,
    }


class Answers(NamedTuple):
    prompts: list[list[int]]
    completions: list[baton.Completion]  # of all prompts, one after another
    rewards: torch.Tensor  # [prompts, samples]


class Batch(NamedTuple):
    """This rank's samples, padded on the right. Position t predicts token t + 1, so rows are one shorter."""

    ids: torch.Tensor  # [rows, length]
    mask: torch.Tensor  # [rows, length - 1]: whether the predicted token was sampled, not prompt and not padding
    old: torch.Tensor  # [rows, length - 1]: logprobs at generation time, the same in every iteration
    advantages: torch.Tensor  # [rows]


def make_batch(answers: Answers, device: torch.device) -> Batch:
    prompts, completions, rewards = answers
    length = max(len(prompts[sample.prompt]) + len(sample.tokens) for sample in completions)
    ids = torch.zeros(len(completions), length, dtype=torch.long)
    old = torch.zeros(len(completions), length - 1)
    mask = torch.zeros_like(old, dtype=torch.bool)
    for row, sample in enumerate(completions):
        prompt = prompts[sample.prompt]
        begin, end = len(prompt), len(prompt) + len(sample.tokens)
        ids[row, :end] = torch.tensor([*prompt, *sample.tokens.tolist()])
        mask[row, begin - 1 : end - 1] = True
        old[row, begin - 1 : end - 1] = torch.tensor(sample.logprobs)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    # A group whose answers are all right or all wrong has nothing to compare: advantage 0.
    advantages = centred / (rewards.std(dim=1, keepdim=True, correction=0) + 1e-4)
    return Batch(*(tensor.to(device) for tensor in (ids, mask, old, advantages.flatten())))


def token_logprobs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[rows, length - 1]. The padding is on the right, where no token before it can attend to it."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return logits.log_softmax(dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def grpo_loss(
    logprobs: torch.Tensor, reference: torch.Tensor, batch: Batch, clip: float, kl_weight: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss (the mean over samples of the mean over their tokens), and figures to report."""
    # What is not counted becomes 0 before exp: a mask after it would not take out an infinity, nor its gradient.
    ratio = (logprobs - batch.old).where(batch.mask, 0).exp()
    advantages = batch.advantages[:, None]
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    away = (reference - logprobs).where(batch.mask, 0)
    kl = away.exp() - away - 1  # "k3": unbiased, and never negative

    def mean(values: torch.Tensor) -> torch.Tensor:
        return ((values * batch.mask).sum(dim=1) / batch.mask.sum(dim=1)).mean()

    loss = mean(kl_weight * kl - gain)
    clipped = mean((ratio - 1).abs() > clip)
    return loss, {"loss": loss.item(), "kl": mean(kl).item(), "clipFraction": clipped.item()}


class Script:
    """What `main` repeats: asking the engines, judging their answers. For other problems, make a subclass of it."""

    max_tokens = 6  # the longest answer has three digits and an end; the rest is room for mistakes
    prompt, reward = staticmethod(attrgetter("prompt")), staticmethod(reward)

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.tokenizer = AutoTokenizer.from_pretrained(options.model)
        self.problems_per_rank = max(1, options.problems // self.ranks)
        self.problems = list(training_problems())
        random.Random(options.seed).shuffle(self.problems)

    def problems_of(self, step: int) -> list[Problem]:
        """This rank's share of the problems of a step; ranks and steps share none until all have been used."""
        first = ((step - 1) * self.ranks + self.rank) * self.problems_per_rank
        return [self.problems[i % len(self.problems)] for i in range(first, first + self.problems_per_rank)]

    def ask(self, rollout: baton.Rollout, problems: Sequence[Problem], samples: int, seed: int) -> Answers:
        prompts = [self.tokenizer.encode(self.prompt(problem)) for problem in problems]
        stop = (self.tokenizer.eos_token_id,)
        sampling = baton.Sampling(n=samples, max_tokens=self.max_tokens, stop_token_ids=stop, seed=seed)
        completions = rollout.generate(prompts, sampling)
        rewards = torch.zeros(len(problems), samples)
        for completion in completions:
            ended = completion.finish == "stop"  # by a stop token, which is no part of the answer
            text = self.tokenizer.decode(completion.tokens[: -1 if ended else None].tolist())
            rewards[completion.prompt, completion.sample] = self.reward(problems[completion.prompt], text)
        return Answers(prompts, completions, rewards)

    def held_out_reward(self, rollout: baton.Rollout, device: torch.device) -> float:
        """The same problems and the same seed each time, so that only the weights can make a difference."""
        held_out = held_out_problems()[: self.options.held_out]
        answers = self.ask(rollout, held_out[self.rank :: self.ranks], samples=1, seed=self.options.seed)
        solved = answers.rewards.sum().to(device)
        dist.all_reduce(solved)
        return solved.item() / len(held_out)


def main(script_type: type[Script] = Script) -> None:
    options = parse_options()
    deepspeed.init_distributed()
    script = script_type(options)

    # (1) Training state is made inside Baton's memory, under deepspeed.zero.Init too.
    with baton.training_memory():
        policy: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
        reference = copy.deepcopy(policy).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=options.learning_rate, weight_decay=0.0)
        config = deepspeed_config(options, rows=script.problems_per_rank * options.samples)
        engine: Any = deepspeed.initialize(model=policy, optimizer=optimizer, config=config)[0]
        reference.to(engine.device)
    # (2) The engine joins the run; the reference is never trained, so Baton saves it only once.
    session = baton.attach(engine, frozen=[reference])

    for step in range(1, options.steps + 1):
        # (3) Inside the block the GPUs belong to the engines, which have the weights of the last optimizer step.
        with session.rollout() as rollout:
            if step == 1:
                session.log(0, heldOut=script.held_out_reward(rollout, engine.device))
            seed = options.seed * 10_000 + step
            answers = script.ask(rollout, script.problems_of(step), options.samples, seed)
        batch = make_batch(answers, engine.device)
        with torch.no_grad():
            from_reference = token_logprobs(reference, batch.ids)
        figures: dict[str, float] = {}
        for _ in range(options.iterations):
            logprobs = token_logprobs(engine, batch.ids)
            loss, figures = grpo_loss(logprobs, from_reference, batch, options.clip, options.kl)
            engine.backward(loss)
            engine.step()
        session.log(step, reward=answers.rewards.mean().item(), **figures)

    with session.rollout() as rollout:
        session.log(options.steps, heldOut=script.held_out_reward(rollout, engine.device))
    session.finish()  # (4) The run has reached its end, and did not just stop.
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
