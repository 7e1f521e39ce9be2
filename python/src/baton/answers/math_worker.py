"""The process of MathVerifier: a line of JSON in, a line out, until the input ends.

{"completion": "... #### 18", "answer": "#### 18", "timeout_s": 5}  ->  {"equal": true, "found": "18"}
An answer that is no mathematics gives {"error": "..."}; without a completion nothing but this is looked at.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any

MEMORY_BYTES = 4 * 2**30
BOX = "\\boxed"
MARK = "####"  # GSM8K's, before the answer
_LIKE_MATHEMATICS = re.compile(r"[-+.($\\\d]")
_WORDS = re.compile(r"[A-Za-z][A-Za-z ]*")


def main() -> None:
    # Libraries that print something must not print it into the answers.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, for all its processes; the input's end ends this
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    import math_verify as _  # noqa: F401  # before the first deadline

    out.write(b'{"ready": true}\n')
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # A signal that no handler waits for: it also ends a computation in C, after CPU time.
        signal.setitimer(signal.ITIMER_PROF, 3 * request["timeout_s"])
        reply = compare(request.get("completion"), request["answer"], math.ceil(request["timeout_s"]))
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.write(json.dumps(reply).encode() + b"\n")


def compare(completion: str | None, answer: str, timeout_s: int) -> dict[str, Any]:
    from math_verify import parse, verify

    try:
        gold = read_answer(answer, timeout_s)
        if not gold:
            return {"error": f"the answer is no mathematics: {answer[:200]!r}"}
        if completion is None:
            return {"equal": False, "found": None}
        readings = (parse(text, parsing_timeout=timeout_s) for text in readings_of(completion, answer))
        given: list[Any] = next((each for each in readings if each), [])
        equal = bool(given) and verify(gold, given, timeout_seconds=timeout_s)
        if not equal and completion.count(BOX) > 1:
            # Boxes with little between them may be the parts of one answer: that is how math-verify reads them.
            parts = parse(completion, parsing_timeout=timeout_s)
            if parts and verify(gold, parts, timeout_seconds=timeout_s):
                given, equal = parts, True
        return {"equal": equal, "found": text_of(given)}
    except (MemoryError, RecursionError):
        return {"equal": False, "found": None}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


@functools.lru_cache(maxsize=4096)
def read_answer(answer: str, timeout_s: int) -> list[Any]:
    from math_verify import parse

    text = marked(answer).strip()
    # LaTeX without marks around it is not found, and plain numbers are in there too.
    return parse(text if BOX in text or text.count("$") >= 2 else boxed(text), parsing_timeout=timeout_s)


def readings_of(completion: str, answer: str) -> Iterator[str]:
    """Where a completion may have its answer, the best first.

    What follows the mark counts only where the data has marks too, and where it looks like an answer: `#### Step 2: 3`
    is a heading of Markdown.
    """
    if BOX not in completion and MARK in completion and MARK in answer:
        line = marked(completion)
        if _LIKE_MATHEMATICS.match(line):
            yield line
        elif _WORDS.fullmatch(marked(answer).strip()) and _WORDS.fullmatch(line):
            yield boxed(line)
    if completion.count(BOX) > 1:
        yield last_box(completion)
    yield completion


def last_box(text: str) -> str:
    """The last box with what is in it; to the end of the text where its braces do not close."""
    begin = text.rindex(BOX)
    depth = 0
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if text[at] == "}" and depth == 0:
            return text[begin : at + 1]
    return text[begin:]


def boxed(text: str) -> str:
    return f"\\boxed{{{text}}}"


def text_of(parsed: list[Any]) -> str | None:
    """What was read, as math-verify writes it; None: nothing was."""
    texts = [each for each in parsed if isinstance(each, str)]
    return texts[-1] if texts else str(parsed[0]) if parsed else None


def marked(text: str) -> str:
    """What follows the last mark, in its line; all of the text if there is none."""
    if MARK not in text:
        return text
    lines = text.rpartition(MARK)[2].strip().splitlines()
    return lines[0] if lines else ""


if __name__ == "__main__":
    main()
