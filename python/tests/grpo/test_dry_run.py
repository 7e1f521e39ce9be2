"""What a dry run does in place of the real run."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from recipes import error_of, recipe, write_lines

from baton.training.grpo import dry_run
from baton.training.grpo.dry_run import plan
from baton.training.grpo.dry_run_data import TEXT_BYTES, cut
from baton.training.grpo.options import options_from
from baton.training.grpo.plan import make_plan

SHAPE = Path(__file__).parents[3] / "examples/shapes/smollm2-135m"
SUMS = [{"prompt": f"{a}+1=", "answer": str(a + 1), "level": a} for a in range(40)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_lines(tmp_path / "train.jsonl", *SUMS)
    write_lines(tmp_path / "test.jsonl", *SUMS[:20])
    return tmp_path


def made(folder: Path, ranks: int = 2, **changes: Any) -> dry_run.Plan:
    return plan(recipe(**{"prompts": 8, "micro_batch": 4, **changes}), SHAPE, folder / "dry", folder, ranks)


def changed(plan: dry_run.Plan) -> dict[str, tuple[Any, Any]]:
    return {name: (before, after) for name, before, after in plan.changes}


def test_the_trainer_takes_what_was_made(folder: Path) -> None:
    evaluation = {"held_out": "test.jsonl", "held_out_samples": 16, "held_out_temperature": 0.5, "evaluate_every": 5}
    dry = made(folder, **evaluation, checkpoint_every=100, max_completion_tokens=999)
    checked = make_plan(dry.options, folder, 2, dry.model_length, pytest.fail)
    assert len(checked.problems) == 2 * dry.options["prompts"]
    assert len(checked.held_out) == 8
    assert (checked.options.held_out_samples, checked.options.solving) == (2, "exact_match")
    longest = max(len(each.prompt_token_ids) for each in [*checked.problems, *checked.held_out])
    assert dry.model_length == longest + 16
    assert checked.problems[0].problem.columns["level"] == 0  # columns are as they were
    assert changed(dry)["problems"] == (40, "4")
    assert dry.own_data


@pytest.mark.parametrize("system", [None, "You add {level}. " * 20])
@pytest.mark.parametrize("chat", ["auto", True])
def test_chats_and_templates(folder: Path, system: str | None, chat: Any) -> None:
    data = {"template": "Add {level}. " * 30, "system": system, "chat": chat, "columns": {"prompt": "prompt"}}
    dry = made(folder, data=data)
    checked = make_plan(dry.options, folder, 2, dry.model_length, pytest.fail)
    prompt = checked.problems[3].problem.prompt
    texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    assert len(texts) == (1 if system is None else 2)
    assert {len(text) for text in texts} == {TEXT_BYTES}
    assert "You add 3." in texts[0] or "Add 3." in texts[0]
    assert dry.model_length < 160


def test_prompts_are_cut_between_characters() -> None:
    assert cut("é" * 40) == "é" * 24
    assert cut("a" + "é" * 40) == "a" + "é" * 23
    assert cut("short") == "short"
    chat: Any = [{"role": "system", "content": "s" * 90}, *({"role": "user", "content": str(n)} for n in range(5))]
    shortened: Any = cut(chat)
    assert [each["content"] for each in shortened] == ["s" * TEXT_BYTES, "3", "4"]


@pytest.mark.parametrize(
    ("recipe", "ranks", "batches", "prompts"),
    [
        # One optimizer step a batch, however many in the recipe's: the least that is the same algorithm.
        ({"prompts": 64, "micro_batch": 8, "gradient_accumulation_steps": 1}, 8, 2, 16),
        ({"prompts": 8, "micro_batch": 8, "gradient_accumulation_steps": 1}, 8, 2, 8),
        # Four steps a batch become two, in which the policy changes before the batch is used up.
        (
            {"prompts": 128, "micro_batch": 4, "gradient_accumulation_steps": 16, "num_iterations": 2},
            8,
            2,
            64,
        ),
        # All passes over a batch are one step.
        ({"prompts": 32, "micro_batch": 2, "gradient_accumulation_steps": 32, "num_iterations": 2}, 8, 2, 32),
        # A step spans batches.
        ({"prompts": 8, "micro_batch": 8, "gradient_accumulation_steps": 4}, 8, 4, 8),
        # Micro batches of several groups.
        ({"prompts": 64, "micro_batch": 32, "gradient_accumulation_steps": 1}, 4, 2, 32),
    ],
)
def test_batches_mean_what_they_mean_in_the_recipe(
    folder: Path, recipe: dict[str, Any], ranks: int, batches: int, prompts: int
) -> None:
    dry = made(folder, ranks, batches=100, **recipe)
    assert (dry.options["batches"], dry.options["prompts"]) == (batches, prompts)
    small = options_from(dry.options)
    small.check(ranks)
    for same in ("num_generations", "num_iterations", "micro_batch", "gradient_accumulation_steps"):
        assert getattr(small, same) == recipe.get(same, getattr(small, same))


def test_a_recipe_that_does_not_come_out_even_is_refused_as_it_is(folder: Path) -> None:
    assert error_of(lambda: made(folder, 3), "BATCH_NOT_DIVISIBLE").found == "8"
    error_of(lambda: made(folder, learning_rat=1), "BAD_OPTIONS")
    assert not (folder / "dry").exists()


def test_sums_stand_in_for_data_that_are_not_there(folder: Path) -> None:
    needs = "def own(completions, level): return [0.0] * len(completions)\n"
    (folder / "own.py").write_text(needs)
    rewards = [{"function": "exact_match"}, {"function": "own.py:own"}]
    dry = made(folder, data={"files": ["later.jsonl"], "columns": {"prompt": "question"}}, rewards=rewards)
    assert not dry.own_data
    assert dry.notes[0] == f"{folder / 'later.jsonl'} is not there: little sums took its place"
    assert [each["function"] for each in dry.options["rewards"]] == ["exact_match", dry_run.SPREAD]
    assert any("own was left out" in note for note in dry.notes)
    make_plan(dry.options, folder, 2, dry.model_length, pytest.fail)
    # With the data there, the same function is used, and what it needs must be there.
    dry = made(folder, rewards=rewards)
    assert [each["function"] for each in dry.options["rewards"]][:2] == ["exact_match", "own.py:own"]
    (folder / "own.py").write_text(needs.replace("level", "nowhere"))
    sys.modules.pop("baton_rewards_own")
    error_of(lambda: made(folder, rewards=rewards), "REWARD_COLUMN_MISSING")
    (folder / "own.py").write_text("syntax error")
    sys.modules.pop("baton_rewards_own")
    missing = {"files": ["later.jsonl"]}
    error_of(lambda: made(folder, data=missing, rewards=rewards), "REWARD_NOT_FOUND")


def test_held_out_that_is_not_there(folder: Path) -> None:
    dry = made(folder, held_out="later.jsonl")
    assert not dry.own_data
    held_out = [json.loads(line)["prompt"] for line in Path(dry.options["held_out"]).read_text().splitlines()]
    train = [json.loads(line)["prompt"] for line in Path(dry.options["data"]["files"][0]).read_text().splitlines()]
    assert len(held_out) == 8
    assert set(held_out).isdisjoint(train)


def test_broken_data_are_refused(folder: Path) -> None:
    (folder / "train.jsonl").write_text('{"prompt": "1", "answer": "1"}\n{]\n')
    error_of(lambda: made(folder), "DATA_NOT_JSON")


def test_what_a_stand_in_gpu_cannot_do(folder: Path) -> None:
    dry = made(folder, attention="flash_attention_2", resume="somewhere", lora={"rank": 64})
    assert changed(dry)["grpo.attention"] == ("flash_attention_2", "sdpa")
    assert dry.options["resume"] is None
    assert dry.options["lora"] == {"rank": 64}
    assert any("LoRA of rank 64" in line for line in dry.kept)


def test_the_random_reward_tells_texts_apart() -> None:
    texts = [f"{n}" for n in range(100)]
    rewards = dry_run.spread(texts)
    assert len(set(rewards)) == 100
    assert all(0 <= reward < 1 for reward in rewards)
    assert dry_run.spread(texts) == rewards


def test_the_command_answers_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dry_run", "--config", str(SHAPE), "--out", str(folder / "dry"), "--folder", str(folder), "--ranks"]
    for ranks, code in (("2", 0), ("3", 1)):
        monkeypatch.setattr(sys, "argv", [*words, ranks])
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(recipe(prompts=8))))
        assert dry_run.main() == code
        answer = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert set(answer) == (
            {"section", "modelLength", "ownData", "changes", "kept", "notes"} if code == 0 else {"error"}
        )
