"""Which of TRL's options go through, which are refused by name, and what the engines are asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import IA3Config, LoraConfig
from trl import GRPOConfig

from baton import BatonError
from baton.trl import options
from baton.trl.generation import BatonGeneration


def config(tmp_path: Path, **more: Any) -> GRPOConfig:
    return GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", **more)


@pytest.fixture
def in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_SOCKET", "/nowhere")
    monkeypatch.setenv("BATON_TOKEN", "token")


def refused(args: GRPOConfig, **given: Any) -> BatonError:
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config={})  # pyright: ignore
    with pytest.raises(BatonError) as caught:
        options.honoured(args, given)
    return caught.value


def test_outside_of_a_run_the_error_says_how_to_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BATON_SOCKET", raising=False)
    error = refused(config(tmp_path))
    assert error.code == "NO_CONTROLLER"
    assert "baton run" in error.action


@pytest.mark.usefixtures("in_a_run")
def test_without_deepspeed_there_is_nothing_to_hand_over(tmp_path: Path) -> None:
    with pytest.raises(BatonError, match="DeepSpeed") as caught:
        options.honoured(config(tmp_path))
    assert caught.value.code == "UNSUPPORTED_TRL_OPTION"


@pytest.mark.usefixtures("in_a_run")
@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"vllm_mode": "server"}, "vllm_mode='server'"),
        ({"vllm_structured_outputs_regex": "a+"}, "vllm_structured_outputs_regex"),
        ({"use_transformers_continuous_batching": True}, "use_transformers_continuous_batching"),
        ({"sync_ref_model": True, "beta": 0.1}, "sync_ref_model"),
        ({"cast_lm_head_to_fp32": True}, "cast_lm_head_to_fp32"),
        ({"min_p": 1.5}, "min_p 1.5"),
        ({"generation_kwargs": {"top_k": 0.5}}, "top_k 0.5"),
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1"),
        ({"generation_kwargs": {"repetition_penalty": 1.2}}, "generation_kwargs['repetition_penalty']=1.2"),
        ({"generation_kwargs": {"bad_words": ["x"]}}, "generation_kwargs['bad_words']"),
        ({"model_init_kwargs": {"load_in_4bit": True}}, "model_init_kwargs['load_in_4bit']"),
    ],
)
def test_what_no_engine_honours_is_refused_by_name(tmp_path: Path, more: dict[str, Any], named: str) -> None:
    error = refused(config(tmp_path, **more))
    assert error.code == "UNSUPPORTED_TRL_OPTION"
    assert error.found.startswith(named)


@pytest.mark.usefixtures("in_a_run")
def test_all_that_is_refused_is_named_at_once(tmp_path: Path) -> None:
    error = refused(config(tmp_path, repetition_penalty=2.0, top_p=2.0), rollout_func=print)
    assert error.found == "rollout_func; repetition_penalty=2.0; top_p 2.0"


@pytest.mark.usefixtures("in_a_run")
def test_generation_goes_through_the_engines_and_the_users_arguments_stay(tmp_path: Path) -> None:
    args = config(tmp_path, top_k=0, min_p=0.0, generation_kwargs={"repetition_penalty": 1.0, "max_tokens": 3})
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config={})  # pyright: ignore
    ours = options.honoured(args)
    assert ours.use_vllm
    assert not args.use_vllm


@pytest.mark.usefixtures("in_a_run")
@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"peft_config": LoraConfig(use_dora=True)}, "peft_config: use_dora=True"),
        ({"peft_config": LoraConfig(lora_bias=True)}, "peft_config: lora_bias=True"),
        ({"peft_config": LoraConfig(alora_invocation_tokens=[1])}, "peft_config: alora_invocation_tokens=[1]"),
        ({"peft_config": IA3Config()}, "adapters of the kind IA3"),
        ({"model": SimpleNamespace(peft_config={"a": LoraConfig(use_dora=True)})}, "peft_config: use_dora=True"),
        ({"model": SimpleNamespace(is_quantized=True)}, "a quantized model"),
        ({"quantization_config": object()}, "quantization_config"),
    ],
)
def test_models_and_adapters_that_no_engine_can_take_are_refused(
    tmp_path: Path, given: dict[str, Any], named: str
) -> None:
    error = refused(config(tmp_path), **{"model": "folder", **given})
    assert error.code == "UNSUPPORTED_TRL_OPTION"
    assert error.found == named


@pytest.mark.usefixtures("in_a_run")
def test_adapters_that_engines_can_take_are_not_refused(tmp_path: Path) -> None:
    args = config(tmp_path, model_init_kwargs={"dtype": "bfloat16", "load_in_4bit": False})
    args.deepspeed_plugin = SimpleNamespace(deepspeed_config={})  # pyright: ignore
    plain = LoraConfig(r=4, lora_alpha=8, use_rslora=True, bias="lora_only", modules_to_save=["lm_head"])
    assert options.honoured(args, {"model": "folder", "peft_config": plain}).use_vllm


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"vllm_tensor_parallel_size": 4}, ["vllm_tensor_parallel_size=4", "engine.tensorParallel"]),
        ({"cache_implementation": "static"}, ["cache_implementation='static'", "engine.cacheBytes"]),
    ],
)
def test_what_the_recipe_decides_is_said(tmp_path: Path, more: dict[str, Any], says: list[str]) -> None:
    assert options.of_the_recipe(config(tmp_path)) == []
    (line,) = options.of_the_recipe(config(tmp_path, **more))
    for words in says:
        assert words in line


SETTINGS = {"temperature": 0.9, "top_k": 0, "top_p": 0.8, "min_p": None, "max_tokens": 32}


#: As TRL makes it.
GENERATION: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "max_completion_length": 8,
    "generation_kwargs": None,
}


@pytest.mark.parametrize(
    ("kwargs", "temperature", "most", "stop"),
    [
        ({}, 0.9, 32, (7,)),
        ({"do_sample": False}, 0.0, 32, (7,)),
        ({"do_sample": True, "max_new_tokens": 5}, 0.9, 5, (7,)),
        ({"temperature": 0.5, "stop_token_ids": [3], "max_tokens": 4}, 0.5, 4, (7, 3)),
    ],
)
def test_generation_kwargs_go_before_the_configuration(
    kwargs: dict[str, Any], temperature: float, most: int, stop: tuple[int, ...]
) -> None:
    found = options.sampling_of(SETTINGS, kwargs, (7,), 1)
    assert (found.temperature, found.top_p, found.max_tokens, found.stop_token_ids) == (temperature, 0.8, most, stop)


@pytest.mark.parametrize(
    ("settings", "kwargs", "cuts"),
    [
        ({}, {}, (0, 0.8, 0.0)),
        ({"top_k": 5, "min_p": 0.1}, {}, (5, 0.8, 0.1)),
        ({"top_k": 5, "min_p": 0.1}, {"top_k": -1, "top_p": 0.5, "min_p": 0.2}, (0, 0.5, 0.2)),
        ({"top_k": None}, {"top_k": 20}, (20, 0.8, 0.0)),
    ],
)
def test_what_samples_are_drawn_from(
    settings: dict[str, Any], kwargs: dict[str, Any], cuts: tuple[int, float, float]
) -> None:
    found = options.sampling_of(SETTINGS | settings, kwargs, (), 1)
    assert (found.top_k, found.top_p, found.min_p) == cuts


def test_seeds_are_the_same_on_every_rank_and_different_at_every_call() -> None:
    def seeds(epochs: list[int]) -> list[int | None]:
        generation = BatonGeneration(**GENERATION)
        return [generation._next_sampling(epoch).seed for epoch in epochs]

    first = seeds([0, 0, 1, 1, 2])
    assert first == seeds([0, 0, 1, 1, 2])
    assert len(set(first)) == 5
    # A training that is resumed at step 1 draws what it would have drawn.
    assert seeds([1, 1, 2]) == first[2:]


def test_training_draws_the_same_with_evaluations_and_without() -> None:
    alone, evaluated = (BatonGeneration(**GENERATION) for _ in range(2))
    evaluated.evaluating = True
    held_out = [evaluated._next_sampling(3).seed for _ in range(2)]
    evaluated.evaluating = False
    drawn = [evaluated._next_sampling(3).seed for _ in range(2)]
    assert drawn == [alone._next_sampling(3).seed for _ in range(2)]
    assert len({*held_out, *drawn}) == 4


def test_generation_before_the_training_is_an_error_that_says_so() -> None:
    generation = BatonGeneration(**GENERATION)
    with pytest.raises(BatonError) as caught:
        generation.generate([[1]], None, 1)
    assert caught.value.code == "NOT_TRAINING"


@pytest.mark.usefixtures("in_a_run")
def test_what_deepspeed_is_told_is_looked_at_before_the_model_is_built(tmp_path: Path) -> None:
    args = config(tmp_path)
    args.deepspeed_plugin = SimpleNamespace(  # pyright: ignore
        deepspeed_config={"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    )
    with pytest.raises(BatonError) as caught:
        options.honoured(args)
    assert caught.value.code == "UNSUPPORTED_DEEPSPEED"


@pytest.mark.usefixtures("in_a_run")
def test_options_of_a_server_are_refused(tmp_path: Path) -> None:
    assert "vllm_server_host='gpu9'" in refused(config(tmp_path, vllm_server_host="gpu9")).found


def test_completions_that_the_engine_would_cut_off_are_refused(tmp_path: Path) -> None:
    options.check_lengths(config(tmp_path, max_completion_length=63), 64)
    for args in (
        config(tmp_path, max_completion_length=64),
        config(tmp_path, max_completion_length=8, generation_kwargs={"max_tokens": 64}),
    ):
        with pytest.raises(BatonError) as caught:
            options.check_lengths(args, 64)
        assert caught.value.found == "max_completion_length 64"
