"""The process of MathVerifier: a line of JSON in, a line out, until the input ends.

{"completion": "... #### 18", "answer": "#### 18", "timeout_s": 5}  ->  {"equal": true, "found": "18"}
An answer that is no mathematics gives {"error": "..."}; without a completion nothing but this is looked at.
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
        given = parse(marked(completion), parsing_timeout=timeout_s)
        return {"equal": bool(given) and verify(gold, given, timeout_seconds=timeout_s), "found": text_of(given)}
    except (MemoryError, RecursionError):
        return {"equal": False, "found": None}
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
