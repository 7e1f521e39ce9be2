"""`baton eval` against a plain loop of transformers, greedily, on problems of GSM8K: the same answers and accuracy.

    eval_check.py FOLDER --model CHECKPOINT --data test.jsonl [--problems 200] [--engine vllm] [--engine transformers]

The loop asks one problem at a time, without padding, and knows nothing of Baton but for how answers are compared. All
is in float32, where the order of additions hardly ever decides a token. vLLM's attention multiplies in TF32 even so: a
completion of its may leave the loop's where the two best tokens are nearly as likely, and nowhere else. It runs without
a GPU too, slowly.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from run_support import ROOT
from support import Checks
from transformers import AutoModelForCausalLM, AutoTokenizer

TEMPLATE = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."
#: Share of the answers that may differ: single tokens are as likely as others to the last bits, or to TF32's.
MAY_DIFFER = {"transformers": 0.02, "vllm": 0.1}
#: Share of the problems of which one is right and the other wrong.
MAY_JUDGE_OTHERWISE = 0.02
#: Where the logprobs of the two best tokens are nearer than this, rounding may decide. TF32 has two bits more than
#: bfloat16, which moves a logprob of this model by 0.05 on average and 0.4 at most.
TIE = 0.25
SECONDS = 1200

T = TypeVar("T")


@dataclass(frozen=True)
class Said:
    """A completion of the loop: its tokens, the end included, and by how much each one's logprob is above the next best."""

    text: str
    tokens: list[int]
    gaps: list[float]


def plain_loop(model_folder: Path, problems: list[dict[str, Any]], max_tokens: int) -> list[Said]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = model.to(device).eval()
    said = []
    for row in problems:
        message = {"role": "user", "content": TEMPLATE.replace("{question}", row["question"])}
        prompt = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids.to(device)
        with torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=max_tokens,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=True,
            )
        tokens = made.sequences[0, ids.shape[1] :]
        best = torch.cat(made.scores).log_softmax(-1).topk(2).values
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        said.append(Said(text, tokens.tolist(), (best[:, 0] - best[:, 1]).tolist()))
    return said


def plain_loops(model_folder: Path, problems: list[dict[str, Any]], max_tokens: int, count: int) -> list[Said]:
    """The same by several processes, which share the problems: one alone leaves most of a GPU idle."""
    said: list[Said | None] = [None] * len(problems)
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(plain_loop, model_folder, problems[i::count], max_tokens) for i in range(count)]
        for i, part in enumerate(parts):
            said[i::count] = part.result()
    return [one for one in said if one is not None]


def gap_where_left(tokenizer: Any, said: Said, text: str) -> float:
    """By how much the loop's token was ahead of the next best one where another completion left it; 0: it never did."""
    if text == said.text:
        return 0.0
    other = tokenizer(text, add_special_tokens=False).input_ids
    for token, gap, found in zip_longest(said.tokens, said.gaps, other):
        if token != found:
            return gap if gap is not None else said.gaps[-1]
    return 0.0


def verdicts(texts: list[str], problems: list[dict[str, Any]]) -> list[tuple[Any, bool]]:
    """The answer that math-verify finds in each text, and whether it is right: called as its documentation does."""
    from math_verify import parse, verify

    found = []
    for text, row in zip(texts, problems, strict=True):
        gold = parse(row["answer"].rpartition("####")[2].strip())
        given = parse(text)
        found.append((given[-1] if given else None, bool(given) and verify(gold, given)))
    return found


def evaluate(folder: Path, options: argparse.Namespace, engine: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Summary and lines of `baton eval`."""
    command = ["node", str(ROOT / "dist/cli/main.js"), "eval", "--json", "--engine", engine, "--dtype", "float32"]
    command += ["--model", str(options.model), "--data", str(options.data), "--out", str(folder)]
    command += ["--limit", str(options.problems), "--max-tokens", str(options.max_tokens), "--template", TEMPLATE]
    print("    ", " ".join(command))
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    print(re.sub(r"^", "     ", done.stderr, flags=re.MULTILINE))
    done.check_returncode()
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return json.loads(done.stdout), lines


def or_error(work: Callable[..., T], *given: Any) -> T | Exception:
    """The result, or why there is none."""
    try:
        return work(*given)
    except Exception as error:
        return error


def compare(
    checks: Checks, engine: str, found: tuple[dict[str, Any], list[dict[str, Any]]], plain: dict[str, Any]
) -> None:
    summary, lines = found
    samples = [line["samples"][0] for line in lines]
    count = len(plain["said"])
    same = sum(sample["found"] == found for sample, (found, _) in zip(samples, plain["verdicts"], strict=True))
    texts = sum(sample["text"] == one.text for sample, one in zip(samples, plain["said"], strict=True))
    pairs = zip(samples, plain["said"], strict=True)
    gaps = [gap_where_left(plain["tokenizer"], one, sample["text"]) for sample, one in pairs]
    may_differ = MAY_DIFFER[engine]
    right = [sample["correct"] for sample in samples]
    [one] = [each for each in summary["passAtK"] if each["k"] == 1]
    checks.figure(f"{engine}: same answers", same / count)
    checks.figure(f"{engine}: same texts, to the last character", texts / count)
    checks.figure(f"{engine}: accuracy", one["value"])
    checks.figure(f"{engine}: tokens a second", summary["tokensPerSecond"])
    checks.figure(f"{engine}: seconds", summary["seconds"]["total"])
    checks.figure(f"{engine}: largest gap between the two best tokens where a text differs", max(gaps))
    checks.that(f"{engine}: texts differ only where rounding decides", max(gaps) <= TIE, f"{sorted(gaps)[-5:]}")
    checks.that(f"{engine}: the same answers", same >= count * (1 - may_differ), f"{same} of {count}")
    off = sum(mine != right for mine, (_, right) in zip(right, plain["verdicts"], strict=True))
    checks.that(f"{engine}: right and wrong alike", off <= count * MAY_JUDGE_OTHERWISE, f"{off} of {count} differ")
    checks.that(f"{engine}: pass@1 is the share of right answers", abs(one["value"] - sum(right) / count) < 1e-9)
    checks.that(f"{engine}: the interval is around it", one["low"] <= one["value"] <= one["high"])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--engine", action="append", choices=["vllm", "transformers"], help="default: both")
    parser.add_argument("--json")
    options = parser.parse_args()
    checks = Checks("eval")
    rows = options.data.read_text().splitlines()[: options.problems]
    problems = [json.loads(row) for row in rows]
    options.problems = len(problems)
    gpu = torch.cuda.is_available()
    loops = max(1, min(12, (os.cpu_count() or 1) - 4)) if gpu else 1
    engines = options.engine or ["vllm", "transformers"]
    with ThreadPoolExecutor(1) as beside:
        loop = beside.submit(plain_loops, options.model, problems, options.max_tokens, loops)
        if not gpu:
            loop.result()  # both at once are too much for a small machine
        evaluated = {engine: or_error(evaluate, options.folder / engine, options, engine) for engine in engines}
        said = loop.result()
        plain = {
            "said": said,
            "verdicts": verdicts([one.text for one in said], problems),
            "tokenizer": AutoTokenizer.from_pretrained(options.model),
        }
    checks.figure("plain loop: accuracy", sum(right for _, right in plain["verdicts"]) / len(problems))
    for engine, found in evaluated.items():
        checks.that(f"{engine}: ends in good order", not isinstance(found, Exception), str(found)[-2000:])
        if not isinstance(found, Exception):
            checks.run(compare, checks, engine, found, plain)
    return checks.end(options.json)


if __name__ == "__main__":
    sys.exit(main())
