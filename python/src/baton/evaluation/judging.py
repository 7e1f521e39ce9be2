"""Whether completions are right: math-verify, several processes of it at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType

from baton.answers.math_verifier import MathVerifier, require_math_verify
from baton.evaluation.options import JUDGE_S
from baton.evaluation.questions import Question, bad_answer

MOST = 4


@dataclass(frozen=True)
class Verdict:
    """`found`: the answer that the completion gives, if there is one. `failure`: why it could not be judged."""

    correct: bool
    found: str | None
    failure: str | None


class Judges:
    """Judges in the background, so that engines need not wait. A context; its processes end with it."""

    def __init__(self, timeout_s: float = JUDGE_S) -> None:
        """`timeout_s`: of one comparison. Raises BatonError PYTHON_PACKAGE_MISSING."""
        require_math_verify()
        count = max(1, min(MOST, (os.cpu_count() or 1) // 2))
        self._verifiers = [MathVerifier(timeout_s) for _ in range(count)]
        self._free: SimpleQueue[MathVerifier] = SimpleQueue()
        for verifier in self._verifiers:
            self._free.put(verifier)
        self._threads = ThreadPoolExecutor(count)

    def check(self, questions: Sequence[Question]) -> None:
        """Whether every answer can be compared with. Raises BatonError DATA_BAD_ANSWER or REWARD_PROCESS."""
        found = self._threads.map(self._check, questions)
        bad = [(question, error) for question, error in zip(questions, found, strict=True) if error is not None]
        if bad:
            first, error = bad[0]
            more = f"; {len(bad)} of {len(questions)} answers are like that" if len(bad) > 1 else ""
            raise bad_answer(first.place, f"{first.answer[-120:]!r}: {error}{more}")

    def judge(self, completion: str, answer: str, then: Callable[[Verdict], None]) -> Future[None]:
        """`then` is called in a thread of the judges; what it raises is in the future."""
        return self._threads.submit(lambda: then(self._judge(completion, answer)))

    def _check(self, question: Question) -> Exception | None:
        verifier = self._free.get()
        try:
            return verifier.check(question.answer)
        finally:
            self._free.put(verifier)

    def _judge(self, completion: str, answer: str) -> Verdict:
        verifier = self._free.get()
        try:
            compared = verifier.compare(completion, answer)
        finally:
            self._free.put(verifier)
        if isinstance(compared, Exception):
            return Verdict(correct=False, found=None, failure=str(compared))
        return Verdict(compared.equal, compared.found, None)

    def __enter__(self) -> Judges:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)
        for verifier in self._verifiers:
            verifier.close()
