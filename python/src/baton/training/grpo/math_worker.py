"""The process of MathVerifier: a line of JSON in, a line out, until the input ends.

{"completion": "... #### 18", "answer": "#### 18", "timeout_s": 5}  ->  {"equal": true} or {"error": "..."}
"""

from __future__ import annotations

import functools
import json
import math
import os
import resource
import signal
import sys
from typing import Any

MEMORY_BYTES = 4 * 2**30
MARK = "####"  # GSM8K's, before the answer


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
        reply = compare(request["completion"], request["answer"], math.ceil(request["timeout_s"]))
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.write(json.dumps(reply).encode() + b"\n")


def compare(completion: str, answer: str, timeout_s: int) -> dict[str, Any]:
    from math_verify import parse, verify

    try:
        gold = read_answer(answer, timeout_s)
        if not gold:
            return {"error": f"the answer is no mathematics: {answer[:200]!r}"}
        given = parse(marked(completion), parsing_timeout=timeout_s)
        return {"equal": bool(given) and verify(gold, given, timeout_seconds=timeout_s)}
    except (MemoryError, RecursionError):
        return {"equal": False}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


@functools.lru_cache(maxsize=4096)
def read_answer(answer: str, timeout_s: int) -> list[Any]:
    from math_verify import parse

    text = marked(answer).strip()
    if "\\boxed" not in text and text.count("$") < 2:
        # LaTeX without marks around it is not found, and plain numbers are in there too.
        text = f"\\boxed{{{text}}}"
    return parse(text, parsing_timeout=timeout_s)


def marked(text: str) -> str:
    """What follows the last mark, in its line; all of the text if there is none."""
    if MARK not in text:
        return text
    lines = text.rpartition(MARK)[2].strip().splitlines()
    return lines[0] if lines else ""


if __name__ == "__main__":
    main()
