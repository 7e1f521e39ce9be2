"""Reward functions are found by name, and the built-in ones judge what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from recipes import error_of

from baton.answers.math_verifier import MathVerifier
from baton.training.grpo.options import RewardOptions
from baton.training.grpo.reward_functions import Reward, load_reward
from baton.training.grpo.rewards import Rewards

SOURCE = """
import helpers_of_recipe
runs = helpers_of_recipe.runs
runs.append(1)
number = 3
def short(completions, answer, most=5):
    return [float(len(each) <= most) for each in completions]
def anything(completions, **columns):
    return columns["most"]
class Judge:
    def __call__(self, completions): return [7.0] * len(completions)
    def method(self, completions): return [8.0] * len(completions)
judge = Judge()
async def later(completions): return []
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "helpers_of_recipe.py").write_text("runs = []\n")
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    return tmp_path


def load(folder: Path, function: str, name: str | None = None, **arguments: Any) -> Reward:
    return load_reward(RewardOptions(function, name=name, arguments=arguments), folder)


def totals(reward: Reward, completions: list[str], **columns: list[Any]) -> list[float]:
    return Rewards([reward], [1.0]).judge(["p"] * len(completions), completions, columns).total.tolist()


def test_functions_of_files_and_modules(folder: Path) -> None:
    short = load(folder, "mine.py:short", most=2)
    assert short.name == "short"
    assert short.needs == {"completions", "answer"}
    # A column does not come in the way of an argument from the recipe.
    assert totals(short, ["ab", "abc"], answer=[1, 2], most=[9, 9]) == [1.0, 0.0]
    assert totals(load(folder, "mine.py:anything", most=[5]), ["a"], most=[1]) == [5]
    assert totals(load(folder, "mine.py:judge"), ["a"]) == [7]
    assert totals(load(folder, "mine.py:judge.method", name="mine"), ["a"]) == [8]
    assert load(folder, "mine.py:judge.method", name="mine").name == "mine"
    assert totals(load(folder, "mine:short"), ["ab"], answer=[1]) == [1.0]
    import helpers_of_recipe  # type: ignore[import-not-found]

    assert len(helpers_of_recipe.runs) == 2  # as a file, and as a module; not once for each function


def test_functions_that_are_not_there(folder: Path) -> None:
    assert "math_verify" in error_of(lambda: load(folder, "math_verfy"), "REWARD_NOT_FOUND").expected
    assert "short" in error_of(lambda: load(folder, "mine.py:shrt"), "REWARD_NOT_FOUND").expected
    error_of(lambda: load(folder, "mine.py:judge.none"), "REWARD_NOT_FOUND")
    assert str(folder / "none.py") in error_of(lambda: load(folder, "none.py:f"), "REWARD_NOT_FOUND").expected
    error_of(lambda: load(folder, "no_such_module:f"), "REWARD_NOT_FOUND")
    for _ in range(2):  # a module that failed is not taken for one that is there
        broken = error_of(lambda: load(folder, "broken.py:f"), "REWARD_NOT_FOUND")
        assert "No module named 'no_such_module'" in broken.found


def test_what_is_no_function(folder: Path) -> None:
    for name in ("number", "Judge", "later"):
        error_of(lambda name=name: load(folder, f"mine.py:{name}"), "REWARD_NOT_CALLABLE")


def test_arguments_that_a_function_does_not_take(folder: Path) -> None:
    assert "most" in error_of(lambda: load(folder, "mine.py:short", msot=2), "REWARD_ARGUMENT").expected
    assert "pattern" in error_of(lambda: load(folder, "format", patern="x"), "REWARD_ARGUMENT").expected
    error_of(lambda: load(folder, "format"), "REWARD_ARGUMENT")
    error_of(lambda: load(folder, "format", pattern="("), "REWARD_ARGUMENT")
    error_of(lambda: load(folder, "math_verify", timeout_s=0), "REWARD_ARGUMENT")


def test_the_package_of_math_verify(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # noqa: ARG005
    error_of(lambda: load(folder, "math_verify"), "PYTHON_PACKAGE_MISSING")


def test_format_and_exact_match(folder: Path) -> None:
    form = load(folder, "format", name="thinks", pattern=r"^<think>.*</think>")
    assert form.name == "thinks"
    assert totals(form, ["<think>a\nb</think> 3", " <think></think>", "3"]) == [1, 0, 0]
    exact = load(folder, "exact_match")
    assert exact.needs == {"answer", "completions"}
    assert totals(exact, [" 15\n", "15.", "7", "150"], answer=["15\n", "15", 7, "15"]) == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("completion", "answer", "equal"),
    [
        ("9 + 6 = 15\n#### 15", "6 and 9.\n#### 15", 1),
        ("She has 15 apples.", "6 and 9.\n#### 15", 1),
        ("#### 15\n\nQuestion: 3?", "#### 15", 1),
        ("15, or #### 16", "#### 15", 0),
        ("#### Step 1\nWe add.\n#### Final Answer\n\\boxed{15}", "15", 1),
        ("### x\n#### Step 2: 5 + 5 = 10\nSo \\boxed{15}", "#### 15", 1),
        ("#### Step 2: 5 + 5 = 10\nThat makes 15.", "#### 15", 1),
        ("\\boxed{15}\n\n####", "#### 15", 1),
        ("16 in all.\n#### $15$", "#### 15", 1),
        ("No doubt.\n#### yes", "It does.\n#### yes", 1),
        ("No doubt.\n#### no", "It does.\n#### yes", 0),
        ("It is 16.", "15", 0),
        ("1,234 dollars", "#### 1,234", 1),
        ("$1234", "$1,234", 1),
        ("minus 15", "-15", 0),
        (r"so \boxed{\frac{1}{2}}", "0.5", 1),
        (r"$x = \frac{2}{4}$", r"\frac{1}{2}", 1),
        (r"\boxed{(3, \frac{\pi}{2})}", r"Thus \boxed{\left( 3, \frac{\pi}{2} \right)}.", 1),
        ("7", r"So \boxed{5}, and 2 more were 7.", 0),
        ("5", r"So \boxed{5}, and 2 more were 7.", 1),
        ("15", "Of $30$ half, and not $3$.\n#### 15", 1),
        ("3", "Of $30$ half, and not $3$.\n#### 15", 0),
        ("15", 15, 1),
        ("nothing", "15", 0),
        ("", "15", 0),
    ],
)
def test_math_verify(verify: Reward, completion: str, answer: Any, equal: int) -> None:
    assert totals(verify, [completion], answer=[answer]) == [equal]


@pytest.fixture(scope="module")
def verify() -> Reward:
    return load_reward(RewardOptions("math_verify"), Path())


def test_math_verify_off_the_main_thread(verify: Reward) -> None:
    found: list[list[float]] = []

    def judge() -> None:
        found.append(totals(verify, ["4", "5"] * 50, answer=["4", "4"] * 50))

    threads = [threading.Thread(target=judge) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[1, 0] * 50] * 2


def test_an_answer_that_is_no_mathematics_fails_its_sample(verify: Reward) -> None:
    judged = Rewards([verify], [1.0]).judge(["p"] * 2, ["5", "5"], {"answer": ["", "5"]})
    assert judged.total[1] == 1
    [failure] = judged.failures
    assert failure.sample == 0
    assert "the answer is no mathematics" in failure.error


def process_of(verifier: MathVerifier) -> subprocess.Popen[bytes]:
    assert verifier._process is not None
    return verifier._process


def test_what_takes_too_long_is_not_equal() -> None:
    verifier = MathVerifier(timeout_s=1.0)
    assert verifier.judge("5", "5") == 1.0
    begin = time.monotonic()
    assert verifier.judge(r"$\frac{(10^9)!}{3}$", "5") == 0.0  # bounded by math-verify
    verifier._timeout_s = 0.3
    os.kill(process_of(verifier).pid, signal.SIGSTOP)  # nothing in there can bound it
    assert verifier.judge("5" * 200_000, "5") == 0.0
    assert time.monotonic() - begin < 30
    verifier._timeout_s = 5.0
    assert verifier.judge("5", "5") == 1.0


def test_a_computation_that_nothing_interrupts_ends() -> None:
    verifier = MathVerifier(timeout_s=5.0)
    assert verifier.judge("5", "5") == 1.0
    stuck = "from baton.answers import math_worker as w; w.compare = lambda *_: {'equal': 7 ** 10**9 > 0}; w.main()"
    command = [sys.executable, "-uc", stuck]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    verifier._process = process = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0, env=environment)
    assert process.stdout is not None
    process.stdout.readline()
    verifier._timeout_s = 1.0  # it ends itself after 3 s of CPU time, and would be ended after 10 s
    assert verifier.judge("5", "5") == 0.0
    assert process.returncode == -signal.SIGPROF
    verifier._timeout_s = 5.0
    assert verifier.judge("5", "5") == 1.0


def test_a_death_of_the_process_is_a_failure_and_the_next_one_is_started() -> None:
    verifier = MathVerifier(timeout_s=5.0)
    assert verifier.judge("5", "5") == 1.0
    first = process_of(verifier)
    os.kill(first.pid, signal.SIGSTOP)
    threading.Timer(0.3, first.kill).start()
    result = verifier.judge("5", "5")
    assert isinstance(result, RuntimeError)
    assert "-9" in str(result)
    assert verifier.judge("5", "5") == 1.0
    second = process_of(verifier)
    second.kill()
    second.wait()
    assert verifier.judge("5", "5") == 1.0


def test_the_process_goes_with_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = MathVerifier(timeout_s=5.0)
    verifier.judge("5", "5")
    process = process_of(verifier)
    del verifier
    assert process.poll() is not None
    # An owner that was killed closes the pipe, and no more.
    verifier = MathVerifier(timeout_s=5.0)
    verifier.judge("5", "5")
    process = process_of(verifier)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=10) == 0
    monkeypatch.setattr("sys.executable", "/bin/false")
    error_of(lambda: MathVerifier(timeout_s=5.0).judge("5", "5"), "REWARD_PROCESS")


def test_what_judges_alike_is_described_alike(tmp_path: Path) -> None:
    described: list[str] = []
    for number, value in enumerate((1.0, 1.0, 0.5)):
        file = tmp_path / str(number) / "rewards.py"
        file.parent.mkdir()
        file.write_text(f"def good(completions):\n    return [{value}] * len(completions)\n")
        described.append(load_reward(RewardOptions(function=f"{file}:good"), tmp_path).described())
    assert described[0] == described[1] != described[2]
    assert described[0].startswith("good ")
    # What is compiled has no file.
    assert Reward.of(len, "compiled").described() == "compiled"
