"""What a script may ask for: all else is refused before it is sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from baton.completion import MOST_SEED, Sampling, prompt_array
from baton.errors import BatonError


@pytest.mark.parametrize(
    "wrong",
    [
        *({"max_tokens": value} for value in (0, -1, 2.5, "2", True, None, float("nan"), 2**32, np.float64(2))),
        *({"n": value} for value in (0, True, np.True_, 1.0, "1", 2**32)),
        *({"temperature": value} for value in (-0.1, float("nan"), float("inf"), "1", None, True, 10**400)),
        *({"top_k": value} for value in (-1, 0.5, "1", None, True, 2**31)),
        *({"top_p": value} for value in (0, 1.1, float("nan"), "1", None, True)),
        *({"min_p": value} for value in (-0.1, 1.1, float("nan"), "0", None, True)),
        *({"stop_token_ids": value} for value in ((-1,), (2**32,), (1.5,), (None,), (True,), "7", 7, None)),
        *({"seed": value} for value in (-1, 2**53, 2**63, 1.0, "1", False)),
    ],
    ids=str,
)
def test_sampling_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BatonError) as caught:
        Sampling(**{"max_tokens": 2, **wrong})
    assert caught.value.code == "BAD_SAMPLING"
    assert caught.value.found == "{} {!r}".format(*next(iter(wrong.items())))


def test_every_wrong_parameter_is_named() -> None:
    wrong: dict[str, Any] = {"max_tokens": 0, "temperature": float("nan"), "stop_token_ids": (-1,)}
    with pytest.raises(BatonError) as caught:
        Sampling(**wrong)
    assert caught.value.found == "max_tokens 0, temperature nan, stop_token_ids (-1,)"


def test_numbers_of_numpy_are_numbers() -> None:
    whole: Any = np.int64(3)
    eos: Any = np.array([7, 9])
    half: Any = np.float32(0.5)
    wire = Sampling(
        whole, n=whole, temperature=half, top_k=whole, top_p=1, min_p=half, stop_token_ids=eos, seed=whole
    ).to_wire()
    assert (wire.max_tokens, wire.n, wire.top_k, wire.seed, wire.stop_token_ids) == (3, 3, 3, 3, [7, 9])
    assert [type(value) for value in (wire.max_tokens, wire.n, wire.top_k, wire.seed, *wire.stop_token_ids)] == [
        int
    ] * 6
    assert [type(value) for value in (wire.temperature, wire.top_p, wire.min_p)] == [float] * 3


def test_the_ends_of_the_ranges_are_fine() -> None:
    wire = Sampling(1, temperature=0, stop_token_ids=(0, 2**32 - 1), seed=MOST_SEED).to_wire()
    assert (wire.seed, wire.stop_token_ids) == (2**53 - 1, [0, 2**32 - 1])
    assert Sampling(1).to_wire().seed is None


@pytest.mark.parametrize(
    "wrong",
    [[], [2**32 + 5], [-1], [2**64], [1.5], [True], ["a"], "text", 7, None, [[1]], [[1], [2, 3]], [5, 2**32]],
    ids=str,
)
def test_a_prompt_that_is_no_list_of_token_ids_is_refused(wrong: Any) -> None:
    with pytest.raises(BatonError) as caught:
        prompt_array(wrong, 4)
    assert caught.value.code == "BAD_PROMPT"
    assert "Prompt 4" in caught.value.message


def test_prompts_of_any_integer_type_become_u32() -> None:
    for prompt in ([0, 2**32 - 1], np.array([0, 2**32 - 1]), np.array([0, 2**32 - 1], dtype=np.uint64)):
        assert prompt_array(prompt, 0).tolist() == [0, 2**32 - 1]
