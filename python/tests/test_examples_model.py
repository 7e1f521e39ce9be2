"""The model that the demo starts from: what is shipped, what it knows, and how it was made."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from baton.examples import make_model
from baton.examples.arithmetic import Problem, held_out_problems, training_problems

MODEL = Path(make_model.__file__).parent / "tiny_model"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16).eval()


def test_the_folder_is_small_and_complete() -> None:
    files = {path.name: path.stat().st_size for path in MODEL.iterdir()}
    assert files.keys() == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert sum(files.values()) <= 4 * 10**6


def test_it_is_a_qwen2_model_that_tensor_parallelism_of_1_2_and_4_divides(model: Any) -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["model_type"] == "qwen2"
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size", "hidden_size"):
        assert config[name] % 4 == 0, name
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    with safe_open(MODEL / "model.safetensors", "pt") as weights:
        stored = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert stored.keys() == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(stored[name], parameter) for name, parameter in model.named_parameters())


def test_every_problem_survives_the_tokenizer_at_one_token_a_character(tokenizer: Any) -> None:
    for problem in [*training_problems(), *held_out_problems()]:
        text = problem.prompt + problem.answer
        ids = tokenizer.encode(text)
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text


def test_the_tokenizer_and_the_config_agree_on_the_marks(tokenizer: Any) -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert tokenizer.eos_token_id == config["eos_token_id"]
    assert tokenizer.pad_token_id == config["pad_token_id"] != tokenizer.eos_token_id
    assert len(tokenizer) == config["vocab_size"]
    # Marks stay visible, so that an answer with one in the middle is not taken for a right one.
    assert tokenizer.decode([*tokenizer.encode("8"), tokenizer.pad_token_id, *tokenizer.encode("5")]) == "8<pad>5"


def test_it_solves_between_a_fifth_and_half_of_the_held_out_problems(model: Any, tokenizer: Any) -> None:
    rates = [make_model.solve_rate(model, tokenizer, seed) for seed in range(3)]
    assert all(0.2 <= rate <= 0.5 for rate in rates), rates


def test_a_careless_pupil_writes_wrong_digits_and_stops_early_as_often_as_asked() -> None:
    chance = random.Random(0)
    written = Counter(make_model.careless("50", 0.25, 0.2, chance) for _ in range(20_000))
    whole = {answer: count for answer, count in written.items() if len(answer) == 2}
    assert sum(whole.values()) / 20_000 == pytest.approx(0.75, abs=0.02)
    assert written["50"] / sum(whole.values()) == pytest.approx(0.8**2, abs=0.02)
    assert all(answer[0] in "456" and answer[1] in "901" for answer in whole)
    assert not any(make_model.careless("10", 0.0, 0.9, chance).startswith("0") for _ in range(1000))


def test_making_it_twice_gives_the_same_weights_and_never_shows_a_held_out_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: set[Problem] = set()
    encode = make_model.encode

    def watched(problems: list[Problem], answers: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        seen.update(problems)
        return encode(problems, answers)

    monkeypatch.setattr(make_model, "encode", watched)
    first, again, other = (
        make_model.make_model(steps=3, careless_steps=2, unfinished=0.5, slips=0.1, seed=seed).state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert len(seen) > make_model.PROBLEMS_PER_STEP
    assert not seen & set(held_out_problems())


def test_labels_are_the_answer_and_its_end_only() -> None:
    ids, labels = make_model.encode([Problem("7+5=", "12")], ["13"])
    text = [make_model.VOCABULARY[i] for i in ids[0]]
    assert text == [*"7+5=13", "<end>", *["<pad>"] * 3]
    counted = labels[0] != make_model.IGNORED
    assert [make_model.VOCABULARY[i] for i in labels[0][counted]] == ["1", "3", "<end>"]
    assert counted.nonzero().flatten().tolist() == [4, 5, 6]
