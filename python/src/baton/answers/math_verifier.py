"""math-verify in a process of its own.

It bounds its time by SIGALRM, which needs the main thread and which a computation in C does not notice: in a rank a
completion such as `9^{9^{9^{9}}}` would stop the run, or take the node's memory. The process that does it here can be
ended from outside, and its memory is limited.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from baton.errors import BatonError

#: Importing sympy on a busy machine. No option: it takes a second or two, whatever is compared later.
START_S = 120.0


@dataclass(frozen=True)
class Comparison:
    """`found`: the answer that a completion gives, as text; None where none was found, or not in time."""

    equal: bool
    found: str | None


def require_math_verify() -> None:
    """Raises BatonError PYTHON_PACKAGE_MISSING."""
    if importlib.util.find_spec("math_verify") is None:
        raise BatonError(
            "PYTHON_PACKAGE_MISSING",
            "Answers are compared by math-verify, which is not installed.",
            expected="the packages of gpu-baton[grpo]",
            found="no module math_verify",
            action="Run `baton setup`, or: pip install math-verify",
        )


class MathVerifier:
    """Compares completions with answers. Any thread may call it; one comparison runs at a time."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def judge(self, completion: str, answer: str) -> float | Exception:
        """1.0 for equal, else 0.0; an exception if `answer` is no mathematics, or if the process died.

        Raises BatonError REWARD_PROCESS: it does not start.
        """
        compared = self.compare(completion, answer)
        return compared if isinstance(compared, Exception) else float(compared.equal)

    def compare(self, completion: str, answer: str) -> Comparison | Exception:
        """As `judge`, and what was compared."""
        result = self._ask({"completion": completion, "answer": answer})
        if result is None:
            return Comparison(equal=False, found=None)
        return result if isinstance(result, Exception) else Comparison(result["equal"], result["found"])

    def check(self, answer: str) -> Exception | None:
        """Why `answer` cannot be compared with anything; None: it can."""
        result = self._ask({"answer": answer})
        if result is None:
            return TimeoutError(f"reading it takes longer than {self._timeout_s:g} s")
        return result if isinstance(result, Exception) else None

    def close(self) -> None:
        """Ends the process; the next question would start another."""
        with self._lock:
            if self._process is not None:
                _end(self._process)
                self._process = None

    def _ask(self, question: dict[str, str]) -> dict[str, Any] | Exception | None:
        """None: it took too long."""
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                process = self._process = self._start()
            request = json.dumps({**question, "timeout_s": self._timeout_s})
            # It stops parsing and comparing after timeout_s each, and itself after three times that, of CPU time. This
            # is for one that does not even run.
            try:
                reply = _exchange(process, request.encode() + b"\n", 10 * self._timeout_s)
            except TimeoutError:
                _end(process)
                return None
            if reply is None:
                # Not equal, if it took too long: a completion must not be better off for being hard to judge.
                status = process.wait()
                error = RuntimeError(f"the process of math-verify ended by itself, with status {status}")
                return None if status == -signal.SIGPROF else error
            result = json.loads(reply)
            return ValueError(result["error"]) if "error" in result else result

    def _start(self) -> subprocess.Popen[bytes]:
        source = str(Path(__file__).parents[2])
        path = os.pathsep.join(each for each in (source, os.environ.get("PYTHONPATH")) if each)
        # Neither a rank of the run nor a process with a GPU.
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "BATON_SOCKET")}
        process = subprocess.Popen(
            [sys.executable, "-m", "baton.answers.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        )
        weakref.finalize(self, _end, process)
        try:
            ready = _exchange(process, b"", START_S)
        except TimeoutError:
            ready = None
        if ready is not None:
            return process
        _end(process)
        raise BatonError(
            "REWARD_PROCESS",
            "The process that runs math-verify did not start.",
            expected=f"that it imports math_verify within {START_S:.0f} s",
            found=f"exit status {process.returncode}",
            action="Read its output; try `python -m baton.answers.math_worker`.",
        )


def _exchange(process: subprocess.Popen[bytes], request: bytes, timeout_s: float) -> bytes | None:
    """Sends a line and returns the next one; None if the process has ended. Raises TimeoutError."""
    assert process.stdin is not None
    assert process.stdout is not None
    deadline = time.monotonic() + timeout_s

    def wait_for(pipe: IO[bytes], event: int) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError

    os.set_blocking(process.stdin.fileno(), False)
    try:
        while request:
            wait_for(process.stdin, select.POLLOUT)
            request = request[os.write(process.stdin.fileno(), request) :]
    except BrokenPipeError:
        return None
    reply = b""
    while not reply.endswith(b"\n"):
        wait_for(process.stdout, select.POLLIN)
        part = os.read(process.stdout.fileno(), 65536)
        if not part:
            return None
        reply += part
    return reply


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
