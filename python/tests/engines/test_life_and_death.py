"""What becomes of an engine when something of it, or around it, ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from harness import Engine, EngineFailed, Ranks, Run, alive, kill, start_time

from baton.engines import model_config
from baton.engines.small.cache import bytes_per_slot
from baton.engines.small.shard import Shard
from baton.protocol import messages as m

#: A touch of a sleeping pool: the process must die of it. `woken`: the same address must work again.
TOUCH = """
import sys, torch
from baton.engines.small.memory import Region
region = Region(0, "test")
tensor = region.tensor((1024, 1024), torch.float32)
tensor.fill_(3)
address = tensor.data_ptr()
region.discard()
assert region.mapped_bytes == 0
if sys.argv[1] == "woken":
    region.wake()
    tensor.fill_(4)
    assert tensor.data_ptr() == address
print(float(tensor.sum()))
"""


@pytest.fixture
def model():
    return reference.make("qwen2", "float32", tied=True, kv_heads=2)


def ready_engine(run: Run, model: Any, tmp_path: Path, tp: int = 2, **more: Any) -> Engine:
    engine = Engine(run, reference.save_config(model, tmp_path), tp=tp, dtype="float32", **more)
    ranks = Ranks(run, reference.tensors(model), 1, 3)
    engine.connect().handoff(ranks)
    engine.ranks = ranks  # they live as long as the engine
    return engine


def gone(pids: list[int], seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)
    return True


def freed(run: Run, gpus: slice, seconds: float) -> bool:
    """Whether nothing is used there: the last threads of a process that looks gone may still hold its memory."""
    ends = time.monotonic() + seconds
    while any(run.used_bytes()[gpus]):
        if time.monotonic() > ends:
            return False
    return True


def start_long_generation(engine: Engine) -> None:
    engine.ask([[1, 2, 3]] * 64, [16] * 64, None, max_tokens=50)
    engine.client.expect(m.Progress)


def expect_no_end(engine: Engine) -> None:
    while True:
        engine.client.expect(m.Progress)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_killed_while_generating(tmp_path: Path, model: Any, victim: int) -> None:
    with Run() as run:
        engine = ready_engine(run, model, tmp_path)
        start_long_generation(engine)
        pids = engine.worker_pids()
        kill(pids[victim])
        began = time.monotonic()
        with pytest.raises(EngineFailed) as error:
            expect_no_end(engine)
        assert time.monotonic() - began < 1.5
        assert error.value.failure.code == "ENGINE_WORKER_DIED"
        assert f"Worker {victim} " in error.value.failure.message
        assert engine.process.wait(3) == 1
        assert gone(pids, 1.0)
        assert freed(run, slice(1, None), 1.0)


def test_a_worker_killed_between_requests_is_noticed_at_the_next(tmp_path: Path, model: Any) -> None:
    with Run() as run:
        engine = ready_engine(run, model, tmp_path)
        kill(engine.worker_pids()[1])
        with pytest.raises(EngineFailed) as error:
            engine.generate([[1]])
        assert error.value.failure.code == "ENGINE_WORKER_DIED"


def test_a_killed_engine_takes_its_workers_along(tmp_path: Path, model: Any) -> None:
    with Run() as run:
        engine = ready_engine(run, model, tmp_path)
        start_long_generation(engine)
        kill(engine.process.pid)
        assert gone(engine.worker_pids(), 1.0)
        assert freed(run, slice(1, 2), 1.0)


def test_an_engine_does_not_outlive_its_controller(tmp_path: Path, model: Any) -> None:
    with Run() as run:
        controller = run.spawn(["-c", "import time; time.sleep(600)"])
        variables = {"BATON_CONTROLLER_PID": str(controller.pid), "BATON_CONTROLLER_START": start_time(controller.pid)}
        engine = ready_engine(run, model, tmp_path, environment=variables)
        start_long_generation(engine)
        controller.kill()
        assert gone([engine.process.pid, *engine.worker_pids()], 1.0)
        assert freed(run, slice(1, 2), 1.0)


@pytest.mark.parametrize("generating", [True, False])
def test_a_shutdown_ends_everything_in_order(
    tmp_path: Path, model: Any, generating: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    with Run() as run:
        engine = ready_engine(run, model, tmp_path)
        if generating:
            start_long_generation(engine)
        began = time.monotonic()
        for client in (*engine.workers, engine.client):
            client.frames.send(m.Shutdown(failure=None))
        assert engine.process.wait(5) == 0
        assert time.monotonic() - began < 2.5
        assert gone(engine.worker_pids(), 0.5)
        assert "Traceback" not in capfd.readouterr().err


def test_a_shutdown_ends_an_engine_whose_worker_is_stopped(tmp_path: Path, model: Any) -> None:
    with Run() as run:
        engine = ready_engine(run, model, tmp_path)
        os.kill(engine.worker_pids()[1], signal.SIGSTOP)
        engine.ask([[1, 2, 3]], [1], None)
        time.sleep(0.3)
        engine.client.frames.send(m.Shutdown(failure=None))
        engine.process.wait(4)
        assert gone(engine.worker_pids(), 1.0)


def test_pings_are_answered_while_generating_and_by_idle_workers(tmp_path: Path, model: Any) -> None:
    with Run() as run:
        engine = ready_engine(run, model, tmp_path)
        engine.ask([[1, 2, 3]] * 8, [16] * 8, None, max_tokens=50)
        engine.client.expect(m.Progress)
        engine.client.frames.send(m.Ping(seq=77))
        began = time.monotonic()
        while True:
            message, _ = engine.client.frames.receive(5)
            if isinstance(message, m.Pong):
                break
        assert message.seq == 77
        assert time.monotonic() - began < 1.0
        while not isinstance(engine.client.frames.receive(60)[0], m.Generated):
            pass
        for worker in engine.workers:
            worker.frames.send(m.Ping(seq=78))
            assert worker.expect(m.Pong, 5)[0].seq == 78


def test_a_request_to_a_sleeping_engine_is_refused(tmp_path: Path, model: Any) -> None:
    with Run() as run:
        engine = ready_engine(run, model, tmp_path)
        engine.sleep()
        with pytest.raises(EngineFailed) as error:
            engine.generate([[1]])
        assert error.value.failure.code == "ENGINE_NOT_AWAKE"


def test_a_cache_that_is_too_small_for_all_is_used_in_turns(tmp_path: Path, model: Any) -> None:
    """One slot: the same samples, one sequence after another."""
    with Run() as run:
        engine = ready_engine(run, model, tmp_path, tp=1)
        config = model_config.parse(model.config.to_dict())
        slot = bytes_per_slot(config, Shard.of(config, 0, 1), engine.ready.max_model_length, torch.float32)
        small = ready_engine(run, model, tmp_path, tp=1, index=1, cache_bytes=slot + 100)
        prompts = [[i, i + 1] for i in range(5)]
        roomy, tight = (e.generate(prompts, samples=2, max_tokens=6) for e in (engine, small))
        assert [[s[0] for s in group] for group in roomy] == [[s[0] for s in group] for group in tight]


@pytest.mark.parametrize(
    ("tp", "more", "code"),
    [
        (3, {}, "TENSOR_PARALLEL_MISFIT"),
        (1, {"cache_bytes": 100}, "CACHE_TOO_SMALL"),
        (1, {"max_sequences": 10**7}, None),
    ],
)
def test_an_engine_that_cannot_start_says_why(
    tmp_path: Path, model: Any, tp: int, more: dict[str, Any], code: str | None
) -> None:
    with Run() as run:
        engine = Engine(run, reference.save_config(model, tmp_path), tp=tp, dtype="float32", **more)
        engine.client = run.accept("engine", 0)
        with pytest.raises(EngineFailed) as error:
            engine.client.expect(m.Ready)
        if code is not None:
            assert error.value.failure.code == code
        assert engine.process.wait(3) == 1


def test_a_wrong_model_folder_is_named(tmp_path: Path) -> None:
    with Run() as run:
        engine = Engine(run, str(tmp_path / "nothing"), tp=1, dtype="float32")
        engine.client = run.accept("engine", 0)
        with pytest.raises(EngineFailed) as error:
            engine.client.expect(m.Ready)
        assert error.value.failure.code == "MODEL_CONFIG_MISSING"


def test_touching_sleeping_memory_is_a_fault() -> None:
    with Run() as run:

        def touch(how: str) -> subprocess.CompletedProcess[bytes]:
            command = [sys.executable, "-c", TOUCH, how]
            return subprocess.run(command, env=run.environment(), capture_output=True, timeout=60, check=False)

        assert touch("asleep").returncode == -signal.SIGSEGV
        woken = touch("woken")
        assert woken.returncode == 0, woken.stderr.decode()
        assert float(woken.stdout) == 4 * 1024 * 1024


def test_workers_import_nothing_heavy() -> None:
    program = "import sys, json, baton.engines.small.worker; print(json.dumps(sorted(sys.modules)))"
    with Run() as run:
        found = subprocess.run([sys.executable, "-c", program], env=run.environment(), capture_output=True, check=True)
    loaded = json.loads(found.stdout)
    for heavy in ("deepspeed", "transformers", "accelerate", "torch._dynamo", "torch._inductor", "pydantic"):
        assert heavy not in loaded
