"""The demo's problems: complete, correct, and the held-out ones strangers to the others."""

from __future__ import annotations

import re

import pytest

from baton.examples.arithmetic import Problem, held_out_problems, reward, training_problems

ALL = [
    *(Problem(f"{a}+{b}=", str(a + b)) for a in range(100) for b in range(100)),
    *(Problem(f"{a}-{b}=", str(a - b)) for a in range(100) for b in range(a + 1)),
]


def pair(problem: Problem) -> frozenset[int]:
    found = re.fullmatch(r"(\d+)[+-](\d+)=", problem.prompt)
    assert found
    return frozenset(int(number) for number in found.groups())


def test_every_problem_is_in_exactly_one_of_the_sets() -> None:
    both = [*training_problems(), *held_out_problems()]
    assert len(both) == len(ALL) == 15_050
    assert set(both) == set(ALL)


def test_there_are_enough_held_out_problems_and_their_pairs_of_numbers_occur_nowhere_else() -> None:
    assert len(held_out_problems()) >= 512
    assert not {pair(p) for p in held_out_problems()} & {pair(p) for p in training_problems()}


def test_the_sets_are_shuffled_but_always_the_same() -> None:
    # The shipped model has seen what was in the training set when it was made.
    assert [p.prompt for p in held_out_problems()[:5]] == ["42+43=", "51+14=", "91+26=", "48+50=", "83-2="]
    assert [p.prompt for p in training_problems()[:5]] == ["83+89=", "21+99=", "9+3=", "80+67=", "67-12="]


def test_held_out_problems_are_as_hard_as_the_others() -> None:
    def shares(problems: tuple[Problem, ...]) -> tuple[float, float]:
        return (
            sum("+" in p.prompt for p in problems) / len(problems),
            sum(len(p.answer) for p in problems) / len(problems),
        )

    assert shares(held_out_problems()) == pytest.approx(shares(training_problems()), abs=0.08)
    assert shares(held_out_problems()[:512]) == pytest.approx(shares(training_problems()), abs=0.08)


@pytest.mark.parametrize(
    ("written", "points"),
    [("85", 1.0), ("84", 0.0), ("8", 0.0), ("", 0.0), ("085", 0.0), ("85 ", 0.0), ("855", 0.0), ("85<end>", 0.0)],
)
def test_only_the_exact_answer_earns_the_reward(written: str, points: float) -> None:
    assert reward(Problem("37+48=", "85"), written) == points
