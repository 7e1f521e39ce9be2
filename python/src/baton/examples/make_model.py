"""Makes `tiny_model/`: the policy that the demo starts from, and its tokenizer.

    python -m baton.examples.make_model --out python/src/baton/examples/tiny_model

A Qwen2-shaped model of about 0.5 million parameters first learns sums, then reads a careless pupil's exercise book:
answers that stop too early, digits off by one. It knows arithmetic then, and is as careless as the pupil: it solves
two problems in five, and reinforcement learning has something to improve within a few steps. The held-out problems
are in neither lesson. On one machine the same seed gives the same files; other processors may round differently.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from baton.examples.arithmetic import Problem, held_out_problems, training_problems

PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"
VOCABULARY = [PAD, END, UNKNOWN, *"0123456789+-="]
#: Longest problem with its answer and the end mark: `99+99=198<end>`.
LONGEST = 10
ROPE_THETA = 10_000.0
PROBLEMS_PER_STEP = 128
SMOOTHING = 0.02
Z_WEIGHT = 1e-3
#: Tokens whose loss is not counted: the prompt and the padding.
IGNORED = -100


def make_tokenizer() -> Qwen2Tokenizer:
    """One token a character: Qwen2's own tokenizer, with a vocabulary in which nothing is merged."""
    vocabulary = {token: number for number, token in enumerate(VOCABULARY)}
    return Qwen2Tokenizer(
        vocab=vocabulary, merges=[], pad_token=PAD, eos_token=END, unk_token=UNKNOWN, model_max_length=64
    )


def make_config() -> Qwen2Config:
    """Eight heads and four key-value heads, so that tensor parallelism of 1, 2 and 4 divides them."""
    return Qwen2Config(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=VOCABULARY.index(END),
        pad_token_id=VOCABULARY.index(PAD),
    )


def careless(answer: str, unfinished: float, slips: float, chance: random.Random) -> str:
    """The answer as a careless pupil writes it.

    Each digit is off by one with the probability `slips` (but no number starts with a needless zero), and the
    answer stops too early, perhaps before its first digit, with the probability `unfinished`.
    """
    while True:
        written = "".join(
            str((int(digit) + chance.choice((-1, 1))) % 10) if chance.random() < slips else digit for digit in answer
        )
        if written == str(int(written)):
            break
    return written[: chance.randrange(len(written))] if chance.random() < unfinished else written


def encode(problems: list[Problem], answers: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels of shape [problems, LONGEST], padded on the right."""
    ids = torch.full((len(problems), LONGEST), VOCABULARY.index(PAD))
    labels = torch.full_like(ids, IGNORED)
    for row, (problem, answer) in enumerate(zip(problems, answers, strict=True)):
        prompt = [VOCABULARY.index(character) for character in problem.prompt]
        tokens = [*prompt, *(VOCABULARY.index(character) for character in answer), VOCABULARY.index(END)]
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, len(prompt) : len(tokens)] = ids[row, len(prompt) : len(tokens)]
    return ids, labels


@torch.no_grad()
def solve_rate(model: Any, tokenizer: Qwen2Tokenizer, seed: int, samples: int = 1) -> float:
    """Share of the held-out problems that the model solves when it samples at temperature 1."""
    torch.manual_seed(seed)
    problems = [problem for problem in held_out_problems() for _ in range(samples)]
    batch = tokenizer([p.prompt for p in problems], return_tensors="pt", padding=True, padding_side="left")
    written = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=6,
    )
    answers = tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(answer == p.answer for answer, p in zip(answers, problems, strict=True)) / len(problems)


def mild_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy that keeps logits small: the rounding of bfloat16 grows with them.

    Every token keeps a little probability (label smoothing), and the normaliser stays near 1 (the "z loss").
    """
    counted = labels != IGNORED
    logits, labels = logits[counted], labels[counted]
    normaliser = logits.logsumexp(dim=-1)
    return functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING) + Z_WEIGHT * (normaliser**2).mean()


def teach(
    model: Qwen2ForCausalLM,
    write: Callable[[str], str],
    chance: random.Random,
    steps: int,
    learning_rate: float,
) -> None:
    """Supervised training on the training problems with their answers as `write` gives them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    problems = list(training_problems())
    for step in range(steps):
        chosen = chance.sample(problems, PROBLEMS_PER_STEP)
        ids, labels = encode(chosen, [write(problem.answer) for problem in chosen])
        loss = mild_loss(model(input_ids=ids).logits[:, :-1], labels[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}", flush=True)


def make_model(steps: int, careless_steps: int, unfinished: float, slips: float, seed: int) -> Qwen2ForCausalLM:
    """A model in bf16 that knows sums (after `steps`) and is careless (after `careless_steps` more)."""
    torch.manual_seed(seed)
    chance = random.Random(seed)
    model: Any = Qwen2ForCausalLM(make_config())
    teach(model, lambda answer: answer, chance, steps, learning_rate=2e-3)
    teach(model, lambda answer: careless(answer, unfinished, slips, chance), chance, careless_steps, learning_rate=1e-3)
    return model.to(torch.bfloat16).eval()


def save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    """Writes the folder, with the names that older readers of the format know beside the new ones."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink()  # sampling is the training script's business
    (folder / "model.safetensors").chmod(0o644)
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_theta": ROPE_THETA, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True, help="folder for the model and its tokenizer")
    options.add_argument("--steps", type=int, default=1600, help="of learning sums")
    options.add_argument("--careless-steps", type=int, default=300, help="of reading the careless pupil's answers")
    options.add_argument("--unfinished", type=float, default=0.5, help="share of the answers that stop too early")
    options.add_argument("--slips", type=float, default=0.12, help="share of the digits that are off by one")
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()

    torch.set_num_threads(1)  # sums of several threads may be added in another order
    torch.use_deterministic_algorithms(True)
    tokenizer = make_tokenizer()
    model = make_model(given.steps, given.careless_steps, given.unfinished, given.slips, given.seed)
    save(model, tokenizer, given.out)
    print(json.dumps({"heldOutSolveRate": [round(solve_rate(model, tokenizer, seed, 4), 4) for seed in range(3)]}))


if __name__ == "__main__":
    main()
