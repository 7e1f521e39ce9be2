"""A run that goes on from a checkpoint, in new processes, is the run that never stopped: to the last bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoint_cases import ALL_RUNS, FASTER, RUNS, SPOILED, Run, prepare
from peft import PeftModel
from recipes import error_of
from safetensors.torch import load_file
from standin import Standin, require_build
from trainer_cases import LORA, RANKS, make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from baton.evaluation.model_source import find_source
from baton.evaluation.weights import as_model
from baton.training.grpo.checkpoint_folder import DESCRIPTION, set_aside

JOB = Path(__file__).parent / "jobs" / "checkpoint_runs.py"

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checkpoints")
    prepare(made)
    return made


def run_job(folder: Path, which: str) -> list[Found]:
    require_build()
    standin = Standin(folder)
    paths = f"{standin.environment()['PYTHONPATH']}:{JOB.parent.parent}"
    more: dict[str, Any] = {"JOB_OUT": str(folder), "PYTHONPATH": paths, "BATON_STANDIN_GRANULARITY": "65536"}
    done = standin.torchrun(RANKS, JOB, which, str(folder), **more)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return [torch.load(folder / f"{which}-rank{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def first(folder: Path) -> list[Found]:
    return run_job(folder, "first")


@pytest.fixture(scope="module")
def second(folder: Path, first: list[Found]) -> list[Found]:
    assert first
    return run_job(folder, "second")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


each_run = pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)


@each_run
def test_saving_changes_nothing(run: Run, first: list[Found]) -> None:
    for found in first:
        never, stopped = found[run.name]["steps"], found[f"{run.name} stopped"]["steps"]
        assert list(never) == list(range(1, run.case.steps + 1))
        assert stopped == {step: never[step] for step in range(1, run.stop + 1)}
        assert len({values[0] for values in never.values()}) == run.case.steps


@each_run
def test_a_run_that_goes_on_is_the_one_that_never_stopped(run: Run, first: list[Found], second: list[Found]) -> None:
    for found, later in zip(first, second, strict=True):
        for step in run.resumed:
            resumed, never = later[f"{run.name} from {step}"], found[run.name]
            assert resumed["steps"] == {k: v for k, v in never["steps"].items() if k > step}
            assert same(resumed["parameters"], never["parameters"])
            number, used = divmod(step * run.case.accumulation, run.case.passes)
            assert resumed["began_at"] == (number, used)


def test_each_stage_is_resumed_at_a_batchs_end_and_in_the_middle() -> None:
    for run in RUNS:
        used = {step * run.case.accumulation % run.case.passes > 0 for step in run.resumed}
        assert used == ({True} if run.case.spans else {True, False}), run.name
    stages = {(run.case.stage, run.case.lora) for run in ALL_RUNS}
    assert stages == {(stage, lora) for stage in (1, 2, 3) for lora in (True, False)}


@pytest.mark.parametrize("lost", ["other_dropout", "new_old_logprobs"])
def test_what_would_be_lost_without_it_is_seen(lost: str, first: list[Found], second: list[Found]) -> None:
    for found, later in zip(first, second, strict=True):
        never, spoiled = found[SPOILED.name]["steps"], later[lost]["steps"]
        assert spoiled.keys() == {step for step in never if step > SPOILED.resumed[0]}
        assert all(values[0] != never[step][0] for step, values in spoiled.items())


def test_a_resumed_run_takes_the_learning_rate_that_it_is_given(first: list[Found], second: list[Found]) -> None:
    for found, later in zip(first, second, strict=True):
        never, faster = found[SPOILED.name], later["faster"]
        rates = {step: float.fromhex(values[2]) for step, values in faster["steps"].items()}
        assert rates.keys() == {step for step in never["steps"] if step > SPOILED.resumed[0]}
        factor = FASTER / LORA_RUN.case.options(Path("any")).learning_rate
        for step, rate in rates.items():
            assert rate == pytest.approx(factor * float.fromhex(never["steps"][step][2]))
        assert not same(faster["parameters"], never["parameters"])


def test_checkpoints_of_another_course_are_renamed(copied: Path) -> None:
    place = copied / "checkpoints"
    options = SimpleNamespace(output=str(copied))

    def names() -> list[str]:
        return sorted(path.name for path in place.iterdir())

    set_aside(options, after=1)  # pyright: ignore[reportArgumentType]
    assert names() == ["earlier-1-step-00000002", "step-00000001"]
    shutil.copytree(place / "step-00000001", place / "step-00000002")
    set_aside(options, after=0)  # pyright: ignore[reportArgumentType]
    assert names() == ["earlier-1-step-00000001", "earlier-1-step-00000002", "earlier-2-step-00000002"]


@each_run
def test_the_model_of_a_checkpoint_is_the_policy(run: Run, folder: Path, first: list[Found]) -> None:
    saved = [found[f"{run.name} stopped"]["saved"] for found in first]
    for step in run.resumed:
        policy = saved[0][step]["parameters"]
        assert same(policy, saved[1][step]["parameters"])
        place = Path(run.checkpoint(folder, step)) / "model"
        base = folder / "model" if run.case.lora else place
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, run.dtype))
        if run.case.lora:
            model = PeftModel.from_pretrained(model, place, autocast_adapter_dtype=False)
            assert not (place / "model.safetensors").exists()
        assert same(dict(model.named_parameters()), policy)
        assert AutoTokenizer.from_pretrained(place)("12+3=")["input_ids"]
    steps = [saved[0][step]["parameters"] for step in run.resumed]
    assert len(steps) == 1 or not same(*steps)


@each_run
def test_old_checkpoints_are_removed(run: Run, folder: Path, first: list[Found]) -> None:
    assert first
    place = Path(run.checkpoint(folder, 1)).parent
    kept = sorted(path.name for path in place.iterdir())
    assert kept == [f"step-{step:08d}" for step in range(max(1, run.stop - 1), run.stop + 1)]


def loaded(place: Path, run: Run) -> dict[str, torch.Tensor]:
    model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, run.dtype))
    return dict(model.named_parameters())


@pytest.mark.parametrize("run", [run for run in RUNS if not run.case.lora], ids=lambda run: run.name)
def test_deepspeeds_part_alone_can_be_evaluated(run: Run, folder: Path, first: list[Found], tmp_path: Path) -> None:
    assert first
    place = Path(run.checkpoint(folder, run.resumed[-1]))
    source = find_source(place / "deepspeed", folder / "model")
    made = as_model(source, run.dtype, tmp_path / "made")
    assert same(loaded(made, run), loaded(place / "model", run))
    assert not same(loaded(made, run), loaded(folder / "model", run))
    if run is ALL_RUNS[0]:
        other = make_model(tmp_path / "other", intermediate_size=64)
        error_of(lambda: as_model(find_source(place / "deepspeed", other), run.dtype, made), "MODEL_NOT_LOADED")


@pytest.mark.parametrize("run", [run for run in RUNS if run.case.lora], ids=lambda run: run.name)
def test_an_adapter_is_evaluated_merged(run: Run, folder: Path, first: list[Found], tmp_path: Path) -> None:
    assert first
    place = Path(run.checkpoint(folder, run.resumed[-1]))
    source = find_source(place, None)
    assert (source.kind, source.base) == ("adapter", folder / "model")
    made = loaded(as_model(source, run.dtype, tmp_path / "made"), run)
    adapter = load_file(place / "model" / "adapter_model.safetensors")
    changed = 0
    for name, base in loaded(folder / "model", run).items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        expected = base.float()
        if f"{prefix}A.weight" in adapter:
            factors = (adapter[f"{prefix}{letter}.weight"].float() for letter in "BA")
            expected = expected + torch.matmul(*factors) * (LORA["alpha"] / LORA["rank"])
            changed += 1
        assert torch.equal(made[name], expected.to(base.dtype)), name
    assert changed == 2 * len(LORA["target_modules"])
    error_of(
        lambda: as_model(find_source(place / "deepspeed", folder / "model"), run.dtype, tmp_path / "no"),
        "MODEL_NOT_LOADED",
    )


LORA_RUN = ALL_RUNS[1]


@pytest.fixture
def copied(folder: Path, first: list[Found], tmp_path: Path) -> Path:
    """A folder with the checkpoints of a run, to spoil."""
    assert first
    shutil.copytree(Path(LORA_RUN.checkpoint(folder, 1)).parent, tmp_path / "checkpoints")
    return tmp_path


def test_auto_passes_over_a_checkpoint_that_was_cut_off(folder: Path, copied: Path) -> None:
    def found() -> tuple[int, int, int] | None:
        checkpoint = LORA_RUN.plan(folder, output=str(copied), resume="auto").checkpoint
        return checkpoint and (checkpoint.step, checkpoint.batch, checkpoint.position)

    whole, older = (copied / "checkpoints" / f"step-0000000{step}" / DESCRIPTION for step in (2, 1))
    assert found() == (2, 1, 0)
    whole.unlink()
    assert found() == (1, 0, 2)
    older.unlink()
    assert found() is None
    named = str(whole.parent)
    assert named in str(error_of(lambda: LORA_RUN.plan(folder, resume=named), "CHECKPOINT_NOT_FOUND"))


CHANGES: dict[str, dict[str, Any]] = {
    "ranks": {"ranks": 1},
    "zero_stage": {"zero_stage": 2},
    "dtype": {"dtype": "float32"},
    "parameters": {"model": "other"},
    "start": {"model": "same shape"},
    "lora": {"lora": LORA | {"dropout": 0.1}},
    "prompts": {"prompts": 8},
    "num_generations": {"num_generations": 2},
    "num_iterations": {"num_iterations": 1},
    "micro_batch": {"micro_batch": 2},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 1},
    "seed": {"seed": 4},
    "temperature": {"temperature": 0.5},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.1},
    "problems": {"data": {"files": ["other_problems.jsonl"]}},
}


def test_every_field_of_the_identity_is_changed_below(folder: Path) -> None:
    assert set(LORA_RUN.plan(folder).identity) == set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_of_another_shape_is_refused(name: str, folder: Path, first: list[Found], tmp_path: Path) -> None:
    assert first
    checkpoint = LORA_RUN.checkpoint(folder, 2)
    assert LORA_RUN.plan(folder, resume=checkpoint).checkpoint is not None
    changes = dict(CHANGES[name])
    if "model" in changes:
        other = {"intermediate_size": 64} if name == "parameters" else {"initializer_range": 0.1}
        changes["model"] = str(make_model(tmp_path / "other", **other))
    error = error_of(lambda: LORA_RUN.plan(folder, resume=checkpoint, **changes), "CHECKPOINT_MISMATCH")
    assert f"its {name} is not this run's" in error.message
    assert error.expected.startswith(f"{name}: ")
    assert error.expected != error.found


def test_a_checkpoint_of_another_format_is_refused(folder: Path, copied: Path) -> None:
    file = copied / "checkpoints" / "step-00000002" / DESCRIPTION
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 0}))
    error = error_of(lambda: LORA_RUN.plan(folder, resume=str(file.parent)), "CHECKPOINT_MISMATCH")
    assert "its format is not" in error.message
