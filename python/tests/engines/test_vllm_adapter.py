"""What of the vLLM adapter needs neither vLLM nor a GPU. The rest is test/gpu/vllm.sh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from baton.engines.adapter import EngineConfig, Request, Sampling
from baton.engines.vllm import options, requests, versions
from baton.engines.vllm.memory import outside, segment_bytes
from baton.errors import BatonError

SOURCES = Path(__file__).resolve().parents[2] / "src"
KNOWN = set(options.RESERVED) | {
    "block_size",
    "compilation_config",
    "disable_log_stats",
    "enforce_eager",
    "generation_config",
    "gpu_memory_utilization",
    "seed",
}


def config(model: str, **more: Any) -> EngineConfig:
    values: dict[str, Any] = {
        "index": 0,
        "model": model,
        "tensor_parallel": 1,
        "devices": (0,),
        "dtype": "bfloat16",
        "max_model_length": 100,
        "max_sequences": 3,
    }
    return EngineConfig(**(values | more))


@pytest.fixture
def model(tmp_path: Path) -> str:
    values = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(values))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("version", "pair"),
    [("0.20.0", (0, 20)), ("0.26.0", (0, 26)), ("0.23.1.dev3+g1", (0, 23)), ("0.24.0+cu129", (0, 24))],
)
def test_known_versions(version: str, pair: tuple[int, int]) -> None:
    assert versions.require(version) == pair


@pytest.mark.parametrize("version", ["0.19.1", "0.27.0", "1.0.0", "dev"])
def test_an_unknown_version_is_an_error_that_names_the_known(version: str) -> None:
    with pytest.raises(BatonError) as raised:
        versions.require(version)
    assert raised.value.code == "VLLM_VERSION"
    assert "0.20 to 0.26" in raised.value.expected
    assert version in raised.value.found


def test_a_missing_vllm_is_said_by_the_engine_process(tmp_path: Path) -> None:
    """The same call as in an engine process, in a Python that certainly has no vLLM."""
    program = "from baton.engines.process import make_adapter, parse_config\nimport os\n"
    program += "kind, config = parse_config(os.environ['BATON_ENGINE'])\nmake_adapter(kind).start(config, 60.0)"
    engine = {"kind": "vllm", "index": 0, "model": str(tmp_path), "tensor_parallel": 1, "devices": [0]}
    engine |= {"dtype": "bfloat16", "max_model_length": 8, "max_sequences": 1}
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "BATON_ENGINE": json.dumps(engine)}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode != 0
    assert "VLLM_MISSING" in found.stderr or "VLLM_NEEDS_GPU" in found.stderr


def test_options_pass_through_in_both_spellings(model: str) -> None:
    given = {"enforceEager": True, "compilation_config": {"mode": 0}}
    arguments = options.engine_arguments(config(model, options=given, cache_bytes=1 << 30), KNOWN)
    assert arguments["enforce_eager"] is True
    assert arguments["compilation_config"] == {"mode": 0}
    assert arguments["kv_cache_memory_bytes"] == 1 << 30
    assert arguments["load_format"] == "dummy"
    assert arguments["enable_sleep_mode"] is True
    assert arguments["distributed_executor_backend"] == "uni"


@pytest.mark.parametrize(
    ("name", "said"),
    [("maxModelLen", "engine.maxModelLength"), ("enforceEagre", "enforce_eager"), ("loadFormat", "from the trainer")],
)
def test_options_that_cannot_be_handed_on(model: str, name: str, said: str) -> None:
    with pytest.raises(BatonError) as raised:
        options.engine_arguments(config(model, options={name: 1}), KNOWN)
    assert raised.value.code == "BAD_ENGINE_OPTION"
    assert said in raised.value.message


def test_the_cache_holds_all_sequences_at_full_length(model: str) -> None:
    arguments = options.engine_arguments(config(model), KNOWN)
    block = 2 * 4 * 8 * 16 * 2 * 2  # keys and values, heads, head size, tokens, bytes, layers
    assert arguments["kv_cache_memory_bytes"] == block * (3 * (7 + 1) + 1)
    halves = options.engine_arguments(config(model, tensor_parallel=2, devices=(0, 1)), KNOWN)
    assert halves["kv_cache_memory_bytes"] * 2 == arguments["kv_cache_memory_bytes"]
    assert halves["distributed_executor_backend"] == "mp"


def test_vllm_sizes_the_cache_when_asked_to(model: str) -> None:
    arguments = options.engine_arguments(config(model, options={"gpuMemoryUtilization": 0.5}), KNOWN)
    assert arguments["gpu_memory_utilization"] == 0.5
    assert "kv_cache_memory_bytes" not in arguments


def test_a_model_of_unknown_cache_size_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BatonError, match="cannot be told"):
        options.engine_arguments(config(str(tmp_path)), KNOWN)


@pytest.mark.parametrize(
    ("wanted", "inherited", "count", "expected"),
    [
        ((0,), None, 1, "0"),
        ((2, 3), None, 4, "2,3,0,1"),
        ((1,), "4,6,7", 8, "6,4,7"),
    ],
)
def test_the_engines_gpus_come_first_and_all_stay_visible(
    wanted: tuple[int, ...], inherited: str | None, count: int, expected: str
) -> None:
    assert options.visible_devices(wanted, inherited, count) == expected


@pytest.mark.parametrize(("wanted", "inherited", "count"), [((2,), None, 2), ((1,), "3", 8), ((0,), "GPU-ab", 1)])
def test_gpus_that_are_not_there(wanted: tuple[int, ...], inherited: str | None, count: int) -> None:
    with pytest.raises(BatonError) as raised:
        options.visible_devices(wanted, inherited, count)
    assert raised.value.code == "BAD_DEVICES"


def request(tokens: int, samples: int, stream: int = 0) -> Request:
    return Request(np.arange(tokens, dtype=np.uint32), samples, stream)


def test_seeds_depend_on_seed_stream_and_sample_only() -> None:
    seeds = {requests.seed_of(seed, stream, k) for seed in range(4) for stream in range(4) for k in range(4)}
    assert len(seeds) == 64
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert requests.seed_of(2**70 + 1, 3, 0) == requests.seed_of(2**70 + 1, 3, 0)


def test_sampling_at_a_temperature_scales_the_logits() -> None:
    sampling = Sampling(0.7, 20, 0.9, 0.05, 50, (7, 9), 3)
    assert requests.logits_divisor(sampling) == 0.7
    made = requests.parameters(sampling, request(60, 2, 5), 1, 100)
    assert (made["temperature"], made["max_tokens"]) == (1.0, 40)
    assert (made["top_k"], made["top_p"], made["min_p"]) == (20, 0.9, 0.05)
    assert made["stop_token_ids"] == [7, 9]
    assert made["seed"] == requests.seed_of(3, 5, 1)
    assert made["logprobs"] == 0
    assert made["ignore_eos"] is True


def test_greedy_has_no_seed_and_nothing_to_cut() -> None:
    sampling = Sampling(0.0, 20, 0.9, 0.05, 50, (), 3)
    assert requests.logits_divisor(sampling) == 1.0
    made = requests.parameters(sampling, request(4, 1), 0, 100)
    assert (made["temperature"], made["seed"], made["max_tokens"]) == (0.0, None, 50)
    assert (made["top_k"], made["top_p"], made["min_p"]) == (0, 1.0, 0.0)


def piece(tokens: list[int], value: float = -1.0) -> list[dict[int, Any]]:
    return [{token: SimpleNamespace(logprob=value - i)} for i, token in enumerate(tokens)]


def test_pieces_become_samples_in_the_order_of_the_requests() -> None:
    collector = requests.Collector([request(3, 2), request(4, 0), request(5, 1)], "7")
    first, second, other = *collector.names(0), *collector.names(2)
    collector.add(other, [5], piece([5]), None)
    collector.add(second, [1, 2], piece([1, 2]), "length")
    collector.add("6-0-0", [1], piece([1]), "length")
    assert (collector.finished, collector.generated) == (1, 3)
    assert collector.unfinished() == [first, other]
    collector.add(other, [6], piece([6], -3.0), "stop")
    collector.add(first, [4], piece([4]), "length")
    groups = collector.samples()
    assert [[sample.tokens.tolist() for sample in group] for group in groups] == [[[4], [1, 2]], [], [[5, 6]]]
    assert groups[2][0].logprobs.tolist() == [-1.0, -3.0]
    assert [sample.finish for group in groups for sample in group] == ["length", "length", "stop"]


@pytest.mark.parametrize(
    ("logprobs", "finish", "code"),
    [
        (piece([1]), "abort", "GENERATION_INCOMPLETE"),
        (None, None, "GENERATION_INCOMPLETE"),
        (piece([1], float("nan")), None, "LOGITS_NOT_FINITE"),
    ],
)
def test_what_is_not_a_completion_is_an_error(logprobs: Any, finish: str | None, code: str) -> None:
    collector = requests.Collector([request(3, 1)], "1")
    with pytest.raises(BatonError) as raised:
        collector.add(collector.names(0)[0], [1], logprobs, finish)
    assert raised.value.code == code


def test_a_request_without_an_end_is_an_error() -> None:
    with pytest.raises(BatonError, match="did not finish"):
        requests.Collector([request(3, 1)], "1").samples()


def test_blocks_outside_of_the_contents() -> None:
    blocks = [(0, 10), (10, 10), (20, 4), (40, 8), (24, 16)]
    assert outside(blocks, [(12, 4), (30, 12)]) == [(0, 10), (20, 4)]
    assert outside(blocks, []) == sorted(blocks)
    assert outside([], [(0, 5)]) == []


def test_a_part_is_made_of_about_sixteen_pieces() -> None:
    assert segment_bytes(16 << 30) == 1 << 30
    assert segment_bytes((16 << 30) + 16) == 2 << 30
    assert segment_bytes(1 << 20) == 16 << 20
    assert segment_bytes(1 << 40) == 4 << 30
    assert segment_bytes(None) == 256 << 20
