"""The example's GRPO with a real model: SmolLM2-135M-Instruct on sums in words, as a chat.

baton run recipe.yaml -- torchrun --nproc_per_node 1 test/gpu/smollm2.py --model FOLDER --zero 2 --steps 40
"""

from __future__ import annotations

import re

from baton.examples import grpo
from baton.examples.arithmetic import Problem


def chat(problem: Problem) -> str:
    """The question, and the beginning of the answer: the model is too small to keep to a format by itself."""
    sum_ = re.sub("([+-])", r" \1 ", problem.prompt.removesuffix("="))
    return f"<|im_start|>user\nWhat is {sum_}?<|im_end|>\n<|im_start|>assistant\n{sum_} ="


def judge(problem: Problem, completion: str) -> float:
    """1.0 when the first number of the first line is the answer."""
    found = re.match(r"\s*(\d+)(?!\d)", completion)
    return 1.0 if found and found[1] == problem.answer else 0.0


class ChatSums(grpo.Script):
    max_tokens = 8
    prompt, reward = staticmethod(chat), staticmethod(judge)


if __name__ == "__main__":
    grpo.main(ChatSums)
