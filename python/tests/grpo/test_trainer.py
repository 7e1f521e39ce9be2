"""The GRPO trainer under real DeepSpeed, against the same training read slowly in one process; and planted mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from naive_course import NaiveStep, Weights, train
from standin import Standin, require_build
from trainer_cases import ALL_CASES, CASES, LORA, PLAIN, RANKS, Case, make_model, samples_of

JOBS = Path(__file__).parent / "jobs"
GRPO = Path(__file__).parent

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def job(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each rank found, by case."""
    require_build()
    folder = tmp_path_factory.mktemp("trainer")
    out = folder / "out"
    out.mkdir()
    standin = Standin(folder)
    paths = f"{standin.environment()['PYTHONPATH']}:{GRPO}"
    more: dict[str, Any] = {"JOB_OUT": str(out), "PYTHONPATH": paths, "BATON_STANDIN_GRANULARITY": "4096"}
    done = standin.torchrun(RANKS, JOBS / "train_cases.py", str(model), **more)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return [torch.load(out / f"rank{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def slow(model: Path, job: list[Found]) -> dict[str, list[NaiveStep]]:
    """The naive reading of each case, from the weights that the policy began with."""
    torch.set_num_threads(1)
    return {case.name: naive(case, model, job[0][case.name]["initial"]) for case in CASES}


def naive(case: Case, model: Path, initial: dict[str, torch.Tensor]) -> list[NaiveStep]:
    scale = LORA["alpha"] / LORA["rank"] if case.lora else None
    batches = [samples_of(number) for number in range(case.batches)]
    return train(case, case.options(model), Weights(model, initial, scale), batches, RANKS)


def off(what: str, found: float | None, expected: float, rtol: float, atol: float) -> list[str]:
    if found is not None and abs(found - expected) <= atol + rtol * abs(expected):
        return []
    return [f"{what}: {found} for {expected}"]


def parameters_off(found: dict[str, torch.Tensor], before: dict[str, torch.Tensor], step: NaiveStep) -> list[str]:
    """Adam makes a whole step of a gradient that is nothing but rounding, so single elements may differ: their mean
    is compared, in units of the mean change of this step.
    """
    assert found.keys() == step.parameters.keys()
    problems, wrong, moved = [], 0.0, 0.0
    for name, expected in step.parameters.items():
        difference = float((found[name] - expected).abs().sum())
        change = float((expected - before[name]).abs().sum())
        wrong, moved = wrong + difference, moved + change
        if difference > 0.1 * change + 1e-7 * expected.numel():
            problems.append(f"{name}: off by {difference} where the step changed {change}")
    return problems + ([f"parameters: off by {wrong} where the step changed {moved}"] if wrong > 2e-3 * moved else [])


def differences(found: dict[str, Any], slow: list[NaiveStep]) -> list[str]:
    """How a training differs from the naive reading, step by step."""
    problems = []
    before = found["initial"]
    for number, (step, expected) in enumerate(zip(found["steps"], slow, strict=True), 1):
        figures, tokens = step["figures"], expected.tokens
        here = [] if step["number"] == number else [f"number {step['number']}"]
        here += off("loss", step["loss"], expected.loss, 1e-4, 1e-5)
        here += off("gradient norm", step["gradient_norm"], expected.gradient_norm, 1e-3, 1e-6)
        here += off("learning rate", step["learning_rate"], expected.learning_rate, 1e-9, 0)
        here += off("tokens", figures["tokens"], tokens, 0, 0)
        here += off("clipped low", figures["clipFractionLow"], expected.clipped_low / tokens, 1e-9, 0)
        here += off("clipped high", figures["clipFractionHigh"], expected.clipped_high / tokens, 1e-9, 0)
        here += off("ratio", figures["ratioMean"], expected.ratio, 1e-4, 0)
        here += off("kl", figures["kl"] or 0.0, expected.kl, 1e-3, 1e-5)
        here += parameters_off(step["parameters"], before, expected)
        before = expected.parameters
        problems += [f"step {number}: {problem}" for problem in here]
    return problems


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_naive_reading(case: Case, job: list[Found], slow: dict[str, list[NaiveStep]]) -> None:
    for found in job:
        assert len(found[case.name]["steps"]) == case.steps
        assert differences(found[case.name], slow[case.name]) == []


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_sees_every_value(stage: int) -> None:
    cases = [case for case in ALL_CASES if case.stage == stage]
    assert {case.loss for case in cases} == {"grpo", "dr_grpo", "bnpo"}
    assert {case.iterations for case in cases} == {1, 2, 4}
    assert {(case.lora, case.beta > 0) for case in cases} == {(lora, kl) for lora in (0, 1) for kl in (0, 1)}
    for value in (
        lambda case: case.accumulation == 1,
        lambda case: case.clip_high is None,
        lambda case: case.cap is None,
        lambda case: case.spans,
        lambda case: case.accumulation < case.micros,  # several steps in a pass
    ):
        assert {value(case) for case in cases} == {True, False}


def test_a_step_that_spans_two_batches_has_live_gradients_in_the_handoff(job: list[Found]) -> None:
    for found in job:
        for case in CASES:
            handoffs = found[case.name]["handoffs"]
            assert len(handoffs) == case.batches
            assert all(handoff["all_away"] for handoff in handoffs), case.name
            live = [number * case.passes % case.accumulation != 0 for number in range(case.batches)]
            assert [handoff["gradients_live"] for handoff in handoffs] == live, case.name


def test_the_policy_begins_as_its_folder_has_it(job: list[Found], model: Path) -> None:
    weights = dict(Weights(model, {}, None).untrained().named_parameters())
    for case in CASES:
        first, second = (found[case.name]["initial"] for found in job)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), case.name
        base = {name: value for name, value in first.items() if "lora_" not in name}
        assert len(base) == len(weights)
        for name, value in base.items():
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(value, weights[plain]), (case.name, name)
        adapter = {name: value for name, value in first.items() if "lora_" in name}
        assert bool(adapter) == case.lora
        assert all(bool(value.any()) == ("lora_A" in name) for name, value in adapter.items()), case.name


def test_nothing_is_clipped_before_the_policy_has_changed_and_something_after(job: list[Found]) -> None:
    for found in job:
        fractions = [step["figures"]["clipFraction"] for step in found[PLAIN.name]["steps"]]
        assert [step["iteration"] for step in found[PLAIN.name]["steps"]] == [1, 2, 1, 2]
        assert fractions[0] == fractions[2] == 0
        assert min(fractions[1], fractions[3]) > 0
        for case in CASES:
            assert found[case.name]["steps"][0]["figures"]["clipFraction"] == 0, case.name


def test_old_logprobs_are_the_same_in_every_pass(job: list[Found]) -> None:
    for found in job:
        for case in CASES:
            again = (case.iterations - 1) * case.micros * case.batches
            assert found[case.name]["old_compared"] == again, case.name
            assert found[case.name]["old_same"], case.name
        assert not found["old_logprobs_of_each_pass"]["old_same"]


def test_a_reference_model_is_there_in_its_phase_only(job: list[Found]) -> None:
    # As a module, and as an engine of its own under ZeRO-3; with LoRA there is none.
    for found in job:
        for case in CASES:
            here = found[case.name]
            assert len(here["phases"]) == (case.batches if case.beta else 0), case.name
            if case.beta and not case.lora:
                assert all(phase == {"readable_in_phase": True, "away_after_phase": True} for phase in here["phases"])
                assert here["outside"] == ["STATE_AWAY"] * case.batches, case.name


class TestPlantedMistakes:
    """Each is caught by the comparison with the naive reading, or is an error at once."""

    @pytest.mark.parametrize(
        "mistake",
        [
            "old_logprobs_of_each_pass",
            "padding_counted",
            "one_ranks_normaliser",
            "reference_that_learns",
            "of_another_rank",
        ],
    )
    def test_seen_in_the_comparison(self, mistake: str, job: list[Found], slow: dict[str, list[NaiveStep]]) -> None:
        for found in job:
            assert "error" not in found[mistake]
            problems = differences(found[mistake], slow[PLAIN.name])
            assert any("loss" in problem for problem in problems)
            assert any("gradient norm" in problem for problem in problems)
            assert any("parameters" in problem for problem in problems)

    @pytest.mark.parametrize(
        ("mistake", "code", "steps"),
        [
            ("one_missing", "BAD_GENERATED_BATCH", 0),
            ("micro_batch_dropped", "BAD_GENERATED_BATCH", 0),
            ("rows_dropped", "BAD_GENERATED_BATCH", 0),
            ("prepared_twice", "OLD_LOGPROBS_SET", 0),
            ("of_the_first_weights", "STALE_COMPLETION", 2),
        ],
    )
    def test_refused(self, mistake: str, code: str, steps: int, job: list[Found]) -> None:
        for found in job:
            assert found[mistake]["error"]["code"] == code
            assert all(found[mistake]["error"].values())
            assert len(found[mistake]["steps"]) == steps

    def test_stale_completions_train_when_they_are_allowed(
        self, job: list[Found], slow: dict[str, list[NaiveStep]]
    ) -> None:
        for found in job:
            assert differences(found["stale_allowed"], slow[PLAIN.name]) == []
