"""`baton eval` against a plain loop of transformers, greedily: the same answers and accuracy.

    eval_check.py FOLDER --model CHECKPOINT [--data test.jsonl] [--problems 200] [--engine vllm] [--engine transformers]

On sums, of which SmolLM2-135M-Instruct solves one in six, so that accuracy says something; and on the problems of
--data, which are GSM8K's or have `problem` and `answer`: long completions, few of them right. Engines are both for the
latter, and vLLM alone for sums, where none is named.

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
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from run_support import ROOT
from support import Checks
from transformers import AutoModelForCausalLM, AutoTokenizer

from baton.examples.arithmetic import held_out_problems

#: Behind a problem of --data.
REASON = "\nPlease reason step by step, and put your final answer within \\boxed{}."
#: Of a sum; GRPO's recipe for SmolLM2 allows as many.
SUM_TOKENS = 8
#: Share of the problems of which one is right and the other wrong. Of 51,200 tokens of GSM8K vLLM's were others for 24
#: texts, one in 2,000: of 200 sums one at most would be.
MAY_JUDGE_OTHERWISE = 0.02
#: Where the logprobs of the two best tokens are nearer than this, rounding may decide. In vLLM SmolLM2-135M-Instruct left
#: the loop within 0.012 in 23 of 200 problems of GSM8K, and within 0.15 in one (docs/measurements.md).
TIE = 0.16
#: What a decoder makes of the first bytes of a character whose others are not there yet.
BROKEN_CHARACTER = "\ufffd"
SECONDS = 1200

T = TypeVar("T")


@dataclass(frozen=True)
class Said:
    """A completion of the loop: its tokens, the end included, and by how much each one's logprob is above the next best."""

    text: str
    tokens: list[int]
    gaps: list[float]


@dataclass(frozen=True)
class Work:
    """Problems, which are lines of `data` with their texts in `column`, and how they are asked: by the model's chat
    template with `suffix`, or as they are. `may_differ`: the share of the answers that may differ, by engine, as single
    tokens are as likely as others to the last bits, or to TF32's."""

    name: str
    data: Path
    problems: list[dict[str, Any]]
    column: str
    suffix: str
    chat: bool
    max_tokens: int
    may_differ: dict[str, float]

    def words(self) -> list[str]:
        """For `baton eval`."""
        asked = ["--problem-column", self.column, "--template", f"{{{self.column}}}{self.suffix}"]
        return [
            "--data",
            str(self.data),
            "--max-tokens",
            str(self.max_tokens),
            *asked,
            *([] if self.chat else ["--no-chat"]),
        ]

    def prompt(self, row: dict[str, Any], tokenizer: Any) -> str:
        text = row[self.column] + self.suffix
        if not self.chat:
            return text
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )


def sums(folder: Path, model: Path, count: int) -> Work:
    """Held-out sums, in a file of their own. A chat model gets the beginning of the answer too."""
    from smollm2 import chat  # brings DeepSpeed, which the loop's processes need not

    asked = chat if AutoTokenizer.from_pretrained(model).chat_template else (lambda problem: problem.prompt)
    problems = [{"problem": asked(each), "answer": each.answer} for each in held_out_problems()[:count]]
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "sums.jsonl"
    data.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    may_differ = {"transformers": 0.02, "vllm": 0.02}
    return Work("sums", data, problems, "problem", "", False, SUM_TOKENS, may_differ)


def of_file(data: Path, count: int, max_tokens: int) -> Work:
    """GSM8K's, or others with `problem` and `answer`."""
    problems = [json.loads(row) for row in data.read_text().splitlines()[:count]]
    [column] = [name for name in ("question", "problem") if name in problems[0]]
    may_differ = {"transformers": 0.02, "vllm": 0.1}
    return Work(data.stem, data, problems, column, REASON, True, max_tokens, may_differ)


def plain_loop(model_folder: Path, work: Work, problems: list[dict[str, Any]]) -> list[Said]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = model.to(device).eval()
    said = []
    for row in problems:
        prompt = work.prompt(row, tokenizer)
        # A chat template has written the special tokens.
        ids = tokenizer(prompt, add_special_tokens=not work.chat, return_tensors="pt").input_ids.to(device)
        with torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=work.max_tokens,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=True,
            )
        tokens = made.sequences[0, ids.shape[1] :]
        best = torch.cat(made.scores).log_softmax(-1).topk(2).values
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        said.append(Said(text, tokens.tolist(), (best[:, 0] - best[:, 1]).tolist()))
    return said


def plain_loops(model_folder: Path, work: Work, count: int) -> list[Said]:
    """The same by several processes, which share the problems: one alone leaves most of a GPU idle."""
    problems = work.problems
    said: list[Said | None] = [None] * len(problems)
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(plain_loop, model_folder, work, problems[i::count]) for i in range(count)]
        for i, part in enumerate(parts):
            said[i::count] = part.result()
    return [one for one in said if one is not None]


def gap_where_left(tokenizer: Any, said: Said, text: str) -> float:
    """By how much the loop's token was ahead of the next best one where another completion left it; 0: it never did."""
    if text == said.text:
        return 0.0
    # By characters: what a text is cut into again need not be the tokens that it was said in.
    for count, gap in enumerate(said.gaps, start=1):
        so_far = tokenizer.decode(said.tokens[:count], skip_special_tokens=True).rstrip(BROKEN_CHARACTER)
        ended = said.tokens[count - 1] in tokenizer.all_special_ids
        if ended or not text.startswith(so_far):
            return gap
    return said.gaps[-1]


def verdicts(texts: list[str], problems: list[dict[str, Any]]) -> list[tuple[Any, bool]]:
    """The answer that math-verify finds in each text, and whether it is right: called as its documentation does."""
    from math_verify import parse, verify

    found = []
    for text, row in zip(texts, problems, strict=True):
        gold = parse(row["answer"].rpartition("####")[2].strip())
        given = parse(text)
        found.append((given[-1] if given else None, bool(given) and verify(gold, given)))
    return found


def evaluate(folder: Path, model: Path, work: Work, engine: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Summary and lines of `baton eval`."""
    command = ["node", str(ROOT / "dist/cli/main.js"), "eval", "--json", "--engine", engine, "--dtype", "float32"]
    command += ["--model", str(model), "--out", str(folder), "--limit", str(len(work.problems)), *work.words()]
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
    checks: Checks, work: Work, engine: str, found: tuple[dict[str, Any], list[dict[str, Any]]], plain: dict[str, Any]
) -> None:
    summary, lines = found
    name = f"{work.name}, {engine}"
    samples = [line["samples"][0] for line in lines]
    count = len(plain["said"])
    same = sum(sample["found"] == found for sample, (found, _) in zip(samples, plain["verdicts"], strict=True))
    texts = sum(sample["text"] == one.text for sample, one in zip(samples, plain["said"], strict=True))
    pairs = zip(samples, plain["said"], strict=True)
    gaps = [gap_where_left(plain["tokenizer"], one, sample["text"]) for sample, one in pairs]
    right = [sample["correct"] for sample in samples]
    [one] = [each for each in summary["passAtK"] if each["k"] == 1]
    checks.figure(f"{name}: same answers", same / count)
    checks.figure(f"{name}: same texts, to the last character", texts / count)
    checks.figure(f"{name}: accuracy", one["value"])
    checks.figure(f"{name}: tokens a second", summary["tokensPerSecond"])
    checks.figure(f"{name}: seconds", summary["seconds"]["total"])
    checks.figure(f"{name}: largest gap between the two best tokens where a text differs", max(gaps))
    checks.that(f"{name}: texts differ only where rounding decides", max(gaps) <= TIE, f"{sorted(gaps)[-5:]}")
    enough = count * (1 - work.may_differ[engine])
    checks.that(f"{name}: the same answers", same >= enough, f"{same} of {count}")
    off = sum(mine != right for mine, (_, right) in zip(right, plain["verdicts"], strict=True))
    checks.that(f"{name}: right and wrong alike", off <= count * MAY_JUDGE_OTHERWISE, f"{off} of {count} differ")
    checks.that(f"{name}: pass@1 is the share of right answers", abs(one["value"] - sum(right) / count) < 1e-9)
    checks.that(f"{name}: the interval is around it", one["low"] <= one["value"] <= one["high"])


def judge(checks: Checks, work: Work, options: argparse.Namespace, engines: list[str]) -> float:
    """Evaluates and compares; returns the accuracy of the plain loop."""
    gpu = torch.cuda.is_available()
    loops = max(1, min(12, (os.cpu_count() or 1) - 4)) if gpu else 1
    folder = options.folder / work.name
    with ThreadPoolExecutor(1) as beside:
        loop = beside.submit(plain_loops, options.model, work, loops)
        if not gpu:
            loop.result()  # both at once are too much for a small machine
        evaluated = {engine: or_error(evaluate, folder / engine, options.model, work, engine) for engine in engines}
        said = loop.result()
        plain = {
            "said": said,
            "verdicts": verdicts([one.text for one in said], work.problems),
            "tokenizer": AutoTokenizer.from_pretrained(options.model),
        }
    accuracy = sum(right for _, right in plain["verdicts"]) / len(said)
    checks.figure(f"{work.name}, plain loop: accuracy", accuracy)
    for engine, found in evaluated.items():
        name = f"{work.name}, {engine}"
        checks.that(f"{name}: ends in good order", not isinstance(found, Exception), str(found)[-2000:])
        if not isinstance(found, Exception):
            checks.run(compare, checks, work, engine, found, plain)
    return accuracy


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="without it: sums alone")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--engine", action="append", choices=["vllm", "transformers"])
    parser.add_argument("--json")
    options = parser.parse_args()
    checks = Checks("eval")
    accuracy = judge(checks, sums(options.folder, options.model, options.problems), options, options.engine or ["vllm"])
    # A wrong judgement would not show where nearly all are right, or nearly none.
    checks.that("sums, plain loop: solves some and not all", 0.05 <= accuracy <= 0.95, str(accuracy))
    if options.data is not None:
        work = of_file(options.data, options.problems, options.max_tokens)
        judge(checks, work, options, options.engine or ["vllm", "transformers"])
    return checks.end(options.json)


if __name__ == "__main__":
    sys.exit(main())
