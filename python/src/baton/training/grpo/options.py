"""Everything that a GRPO run can be told: the `grpo` part of a recipe.

A *generated batch* is what one rollout makes: `prompts` problems with `num_generations` completions each. A *pass* is
one use of it for training; there are `num_iterations` of them.
"""

# ruff: noqa: RUF009 -- `_option` makes a new field at each call, as `field` does
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from baton.errors import BatonError
from baton.training.grpo import reading
from baton.training.grpo.reading import bad_option

Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]


def _option(help_text: str, **default: Any) -> Any:
    """A dataclass field that `baton grpo --options` can explain."""
    return field(metadata={"help": help_text}, **default)


def _no_columns() -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class DataOptions:
    files: Annotated[tuple[Text, ...], Meta(min_length=1)] = _option(
        "JSONL files with one problem a line, one after another; paths are relative to the recipe"
    )
    columns: dict[str, str] = _option(
        "name here: name in the files, such as `prompt: question`. The prompt is the column `prompt`: a text, or a "
        "list of chat messages. All columns go to the reward functions, by both names",
        default_factory=_no_columns,
    )
    template: str | None = _option(
        "text of the prompt, in which {question} stands for the column `question` ({{question}} for itself); then no "
        "column `prompt` is needed",
        default=None,
    )
    system: str | None = _option(
        "text of a system message before each prompt, with columns as in `template`; a message list that has a system "
        "message keeps its own",
        default=None,
    )
    chat: Literal["auto"] | bool = _option(
        "whether the model's chat template is put around prompts; auto: where the model has one", default="auto"
    )
    limit: Count | None = _option("how many problems to use, from the first; null: all", default=None)
    too_long: Literal["error", "drop"] = _option(
        "what happens to problems whose prompt has too many tokens", default="error"
    )


@dataclass(frozen=True)
class RewardOptions:
    function: Text = _option(
        "math_verify, format, exact_match, or a function of yours: `module:function` or `file.py:function`, the file "
        "relative to the recipe"
    )
    weight: float = _option("what its values are multiplied by before they are added up", default=1.0)
    name: Text | None = _option("what it is called in metrics; null: the function's name", default=None)
    arguments: dict[str, Any] = _option("keyword arguments of every call", default_factory=dict)

    @property
    def label(self) -> str:
        return self.name or self.function.rpartition(":")[2]


@dataclass(frozen=True)
class LoraOptions:
    rank: Count = _option("rank of the two factors")
    alpha: Positive = _option("the adapter's output is multiplied by alpha / rank", default=32.0)
    dropout: Fraction = _option("share of the adapter's inputs that is dropped in training", default=0.0)
    target_modules: Annotated[tuple[Text, ...], Meta(min_length=1)] | Literal["all-linear"] = _option(
        "names of the modules that get an adapter; all-linear: every linear layer but the output's",
        default="all-linear",
    )


@dataclass(frozen=True)
class GrpoOptions:
    model: Text = _option("folder of the policy to start from, with its tokenizer")
    output: Text = _option("folder for metrics and checkpoints")
    data: DataOptions = _option("the problems")
    rewards: Annotated[tuple[RewardOptions, ...], Meta(min_length=1)] = _option("what judges completions")
    try_rewards: bool = _option(
        "whether reward functions are tried on made-up completions before any GPU is used; false for one that only a "
        "completion of the model can be given to",
        default=True,
    )
    lora: LoraOptions | None = _option(
        "train an adapter, which the engines get merged into the base weights; null: all parameters", default=None
    )
    zero_stage: Literal[1, 2, 3] = _option("ZeRO stage of DeepSpeed", default=2)
    dtype: Literal["bfloat16", "float32"] = _option("of the policy's parameters", default="bfloat16")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = _option("attention of the trainer", default="sdpa")
    gradient_checkpointing: bool = _option("compute activations again instead of keeping them", default=False)
    seed: Natural = _option("of the order of the problems, of sampling and of dropout", default=0)
    deepspeed: dict[str, Any] = _option(
        "more keys of DeepSpeed's configuration, such as `zero_optimization: {reduce_bucket_size: 200000000}`",
        default_factory=dict,
    )

    batches: Count = _option("generated batches of the whole run", default=100)
    prompts: Count = _option("problems of a generated batch, over all ranks", default=64)
    num_generations: Annotated[int, Meta(ge=2)] = _option("completions of each problem: one group", default=8)
    num_iterations: Count = _option("passes over each generated batch", default=1)
    micro_batch: Count = _option("completions in one forward pass of a rank", default=8)
    gradient_accumulation_steps: Count = _option("forward passes of a rank for one optimizer step", default=1)

    learning_rate: Positive = _option("of AdamW, after the warm-up", default=1e-6)
    weight_decay: NotNegative = _option("of AdamW", default=0.0)
    betas: tuple[Fraction, Fraction] = _option("of AdamW", default=(0.9, 0.999))
    warmup_steps: Natural = _option("optimizer steps in which the learning rate rises from 0", default=0)
    max_grad_norm: Positive = _option("longest gradient, as an L2 norm over all parameters", default=1.0)

    max_prompt_tokens: Count | None = _option(
        "tokens of the longest prompt; null: what the model can take beside the completion", default=None
    )
    max_completion_tokens: Count = _option("tokens after which a completion is cut off", default=256)
    temperature: Positive = _option("of sampling, and of the logprobs in the loss", default=1.0)
    top_k: Natural = _option("sample among the so many likeliest tokens; 0: all", default=0)
    top_p: Annotated[float, Meta(gt=0, le=1)] = _option("sample among the likeliest of this probability", default=1.0)
    min_p: Annotated[float, Meta(ge=0, le=1)] = _option(
        "sample among tokens at least this share as likely as the likeliest", default=0.0
    )

    loss: Literal["grpo", "dr_grpo", "bnpo"] = _option(
        "mean over tokens: of each completion, then over completions (grpo); over the constant "
        "max_completion_tokens (dr_grpo); over all tokens of the batch (bnpo)",
        default="grpo",
    )
    clip: Annotated[float, Meta(gt=0, lt=1)] = _option(
        "how far below 1 a token's probability ratio still gives a gradient", default=0.2
    )
    clip_high: Positive | None = _option("how far above 1; null: the same as clip", default=None)
    beta: NotNegative = _option("weight of the KL divergence from the reference; 0: no reference model", default=0.0)
    scale_rewards: Literal["group", "batch", "none"] = _option(
        "whose standard deviation advantages are divided by", default="group"
    )
    importance_cap: Annotated[float, Meta(ge=1)] | None = _option(
        "weigh tokens with the probability ratio of trainer to engine, at most this; null: do not", default=None
    )
    mask_truncated: bool = _option("leave completions that were cut off out of the loss", default=False)
    stale: Literal["error", "allow"] = _option("what happens to completions of older weights", default="error")

    held_out: Text | None = _option("JSONL file of problems to evaluate on, with the columns of data", default=None)
    held_out_limit: Count | None = _option("how many of them to use, from the first; null: all", default=None)
    evaluate_every: Count | None = _option(
        "generated batches between two evaluations; null: only before the first and after the last", default=None
    )
    held_out_samples: Count = _option("completions of each held-out problem, for pass@1 and pass@ this", default=1)
    held_out_temperature: NotNegative = _option("of sampling in an evaluation; 0: the likeliest token", default=0.0)
    solved_by: Text | None = _option(
        "reward function whose value of 1 or more says that a completion is right, for pass@k; null: math_verify or "
        "exact_match where it is among them, else the only one",
        default=None,
    )
    checkpoint_every: Count | None = _option(
        "optimizer steps between two checkpoints, be it in the middle of a generated batch; null: none", default=None
    )
    keep_checkpoints: Count | None = _option("how many of the newest checkpoints to keep; null: all", default=None)
    resume: Text | None = _option(
        "folder of a checkpoint to go on from; auto: the newest in output, if any; null: start anew", default=None
    )

    @property
    def solving(self) -> str | None:
        """Name of the reward function that says whether a completion is right; None: the recipe does not tell."""
        if self.solved_by is not None:
            return self.solved_by
        for name in ("math_verify", "exact_match"):
            for reward in self.rewards:
                if reward.function == name:
                    return reward.label
        return self.rewards[0].label if len(self.rewards) == 1 else None

    @property
    def upper_clip(self) -> float:
        return self.clip if self.clip_high is None else self.clip_high

    def learning_rate_at(self, step: int) -> float:
        """Of optimizer step `step`, from 1."""
        return self.learning_rate * min(1.0, step / (self.warmup_steps + 1))

    def steps_per_generation(self, ranks: int) -> int:
        """Forward passes of a rank in one pass over a generated batch."""
        return self.prompts * self.num_generations // ranks // self.micro_batch

    def check(self, ranks: int) -> None:
        """Whether the batches come out even on `ranks` ranks. Raises BatonError BATCH_NOT_DIVISIBLE."""
        _even(self.prompts, ranks, "grpo.prompts", "the number of ranks: a group stays on one rank")
        samples = self.prompts // ranks * self.num_generations
        _even(samples, self.micro_batch, "prompts x num_generations / ranks", "grpo.micro_batch")
        # An accumulation may well span generated batches, but what the last one leaves would be thrown away.
        passes = self.batches * self.num_iterations * self.steps_per_generation(ranks)
        whole = "batches x num_iterations x prompts x num_generations / ranks / micro_batch"
        _even(passes, self.gradient_accumulation_steps, whole, "grpo.gradient_accumulation_steps")


def options_from(mapping: Mapping[str, Any]) -> GrpoOptions:
    """The options under the key `grpo` of a recipe. Raises BatonError BAD_OPTIONS."""
    options = reading.read(GrpoOptions, mapping, "grpo")
    if options.evaluate_every is not None and options.held_out is None:
        raise bad_option("grpo.evaluate_every", "there is nothing to evaluate on.", "grpo.held_out as well", "null")
    if options.data.system is not None and options.data.chat is False:
        raise bad_option("grpo.data.system", "a system message needs a chat template.", "chat: auto or true", "false")
    if all(reward.weight == 0 for reward in options.rewards):
        raise bad_option("grpo.rewards", "no function counts.", "a weight that is not 0", "only weights of 0")
    labels: set[str] = set()
    for index, reward in enumerate(options.rewards):
        if reward.label in labels:
            path = f"grpo.rewards[{index}].name"
            raise bad_option(path, "two functions have the same name.", "a name of its own", reward.label)
        labels.add(reward.label)
    if options.solved_by is not None and options.solved_by not in labels:
        message = "there is no reward function of this name."
        raise bad_option("grpo.solved_by", message, f"one of {', '.join(labels)}", options.solved_by)
    if options.held_out_samples > 1 and options.held_out_temperature == 0:
        message = "all completions of a problem are the same at temperature 0."
        path, expected = "grpo.held_out_samples", "1, or a grpo.held_out_temperature above 0"
        raise bad_option(path, message, expected, str(options.held_out_samples))
    return options


def describe() -> str:
    """Help for all options."""
    return reading.describe(GrpoOptions, "grpo")


def _even(total: int, parts: int, what: str, by: str) -> None:
    if total % parts == 0:
        return
    lower = total // parts * parts
    raise BatonError(
        "BATCH_NOT_DIVISIBLE",
        f"The batches of this run do not come out even: {what} is no multiple of {by}.",
        expected=f"a multiple of {parts}, such as {' or '.join(str(each) for each in (lower, lower + parts) if each)}",
        found=str(total),
        action="Change one of these options, or the number of ranks; nothing is rounded, and nothing thrown away.",
    )
