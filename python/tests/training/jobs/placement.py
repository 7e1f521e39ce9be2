"""What goes into the pool, what is taken out of it, what is refused; and who waits for a resume in the background."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import common
import deepspeed
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
from common import RANK, Shape
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_grad,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from transformers import AutoModelForCausalLM

import baton
from baton.errors import BatonError
from baton.training.deepspeed_state import innermost_optimizer
from baton.training.holdings import Role

#: DeepSpeed says that they may find nothing; here they must not.
full_master: Any = safe_get_full_fp32_param
full_state: Any = safe_get_full_optimizer_state
full_gradient: Any = safe_get_full_grad
local_master: Any = safe_get_local_fp32_param
local_state: Any = safe_get_local_optimizer_state


def code_of(action: Callable[[], Any]) -> dict[str, str]:
    try:
        action()
    except BatonError as error:
        return error.to_wire()
    return {"code": "none"}


def reference_from_files() -> Any:
    """A reference model as people load one: its weights may be views of a mapped file."""
    folder = common.shared_folder()
    common.model(Shape("reference", 0)).save_pretrained(folder)  # by rank 0
    torch.distributed.barrier()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).requires_grad_(False).eval()


def step_once(engine: Any) -> None:
    ids = torch.arange(12).unsqueeze(0) + RANK
    for _ in range(2):
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()


def placement() -> dict[str, Any]:
    found: dict[str, Any] = {}
    shape = Shape("zero2", 2, accumulation=2)
    memory = baton.training_memory()
    found["same_memory"] = baton.training_memory() is memory
    reference = reference_from_files()
    with baton.training_memory():
        engine = common.build(shape, memory, model_inside=False)
        prompts = torch.arange(50_000)
        noted = torch.full((1000,), 3.0)
        array = noted.numpy()
    views = [prompts[10:20], prompts.view(100, 500)]
    found["prompts_started_in_the_pool"] = memory.pool.owns(prompts.data_ptr())

    found["unsupported"] = code_of(lambda: memory.attach(torch.nn.Linear(2, 2)))
    shared = torch.nn.Linear(300, 300)
    shared.weight.data.share_memory_()
    found["shared"] = code_of(lambda: memory.attach(engine, [shared]))
    overlapping = torch.nn.Module()
    block = bytearray(4000)
    overlapping.left = torch.nn.Parameter(torch.frombuffer(block, dtype=torch.float32, count=600), False)
    overlapping.right = torch.nn.Parameter(torch.frombuffer(block, dtype=torch.float32, offset=1600), False)
    found["overlapping"] = code_of(lambda: memory.attach(engine, [overlapping]))

    answer_before = reference(input_ids=prompts[:12].unsqueeze(0)).logits.sum().item()
    memory.attach(engine, [reference])
    found["wrong_place"] = [held.names[0] for held in memory.holdings if not memory.pool.owns(held.address)]
    found["reference_bytes"] = sum(held.bytes for held in memory.holdings.of(Role.REFERENCE))
    found["shared_bytes"] = memory.shared_bytes()
    found["prompts_left_the_pool"] = not memory.pool.owns(prompts.data_ptr())
    found["second_engine"] = code_of(lambda: memory.attach(object()))
    step_once(engine)

    def pause_and_use() -> dict[str, Any]:
        first = memory.pause("optimizer")
        # Small tensors may share a segment with what stays.
        reference_gone = not all(common.readable(weights.data_ptr()) for weights in reference.parameters())
        second = memory.pause("all")
        used = (
            int(prompts.sum()) == 50_000 * 49_999 // 2 and int(views[0][0]) == 10 and int(views[1][99, 499]) == 49_999
        )
        numpy_used = float(array.sum()) == 3000.0
        forward_codes = [
            code_of(lambda: engine(input_ids=torch.arange(4).unsqueeze(0)))["code"],
            code_of(lambda: reference(input_ids=torch.arange(4).unsqueeze(0)))["code"],
        ]
        memory.resume()
        return {
            "used": used,
            "numpy_used": numpy_used,
            "forward_codes": forward_codes,
            "reference_gone": reference_gone,
            "clean_bytes": first.clean_bytes + second.clean_bytes,
            "released_bytes": first.released_bytes + second.released_bytes,
            "kept_bytes": second.kept_bytes,
            "segment_bytes": memory.pool.segment_bytes,
        }

    found["pauses"] = [pause_and_use(), pause_and_use()]
    found["reference_same"] = reference(input_ids=prompts[:12].unsqueeze(0)).logits.sum().item() == answer_before

    inside: list[dict[str, str]] = []
    handle = engine.optimizer.optimizer.register_step_pre_hook(
        lambda *_: inside.append(code_of(lambda: memory.pause("all")))
    )
    step_once(engine)
    handle.remove()
    found["pause_inside_a_step"] = inside[0]
    found["resume_twice"] = code_of(memory.resume)

    memory.pool.verify_frozen(2**64 - 1)
    with torch.no_grad():
        for weights in reference.parameters():
            weights.add_(1)
    found["frozen_changed"] = code_of(lambda: (memory.pause("all"), memory.resume()))
    return found


def returning(shape: Shape, memory: Any) -> dict[str, Any]:
    """Resumes in the background, and who waits for it."""
    if memory.paused is not None:
        raise AssertionError("the memory must be there")
    engine = common.build(shape, memory)
    memory.attach(engine)
    step_once(engine)
    parameter = next(engine.module.parameters())
    events: list[str] = []
    real_wait = memory.pool.wait

    def recorded_wait(deadline_ms: int) -> Any:
        events.append("wait")
        return real_wait(deadline_ms)

    memory.pool.wait = recorded_wait
    inner = innermost_optimizer(engine)
    handle = inner.register_step_pre_hook(lambda *_: events.append("step"))
    # Learning rate schedulers wrap the optimizer's step, before or after Baton has hooked it.
    scheduler = torch.optim.lr_scheduler.LambdaLR(inner, lambda _: 1.0)

    def away_and_back(what: Callable[[], Any]) -> dict[str, Any]:
        memory.pause("all")
        report = memory.resume(wait=False)
        closed, began = memory.gate.closed, len(events)
        result = what()
        return {
            "pending_bytes": report.pending_bytes,
            "closed": closed,
            "closed_after": memory.gate.closed,
            "events": events[began:],
            "returned_bytes": memory.last_return.copied_bytes,
            "result": result,
        }

    def forward_and_backward() -> None:
        ids = torch.arange(12).unsqueeze(0)
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        events.append("backward")
        engine.step()
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        events.append("backward")
        engine.step()

    def pause_again() -> None:
        memory.pause("all")
        memory.resume()

    def same(read: Callable[[], torch.Tensor]) -> dict[str, Any]:
        before = read().clone()
        return away_and_back(lambda: torch.equal(read(), before))

    def written(read: Callable[[], torch.Tensor], write: Callable[[torch.Tensor], None]) -> dict[str, Any]:
        value = read() + 1
        away = away_and_back(lambda: write(value))
        return {**away, "result": torch.equal(read(), value)}

    found: dict[str, Any] = {}
    name = "exp_avg"
    if shape.stage > 0:  # without ZeRO there is no partition that these could read
        found["master"] = same(lambda: full_master(parameter))
        found["moment"] = same(lambda: full_state(parameter, name))
        found["set_master"] = written(
            lambda: full_master(parameter), lambda value: safe_set_full_fp32_param(parameter, value)
        )
        found["set_moment"] = written(
            lambda: full_state(parameter, name), lambda value: safe_set_full_optimizer_state(parameter, value, name)
        )
    if shape.stage == 3:
        found["local_master"] = same(lambda: local_master(parameter))
        found["local_moment"] = same(lambda: local_state(parameter, name))
        found["set_local_master"] = written(
            lambda: local_master(parameter), lambda value: safe_set_local_fp32_param(parameter, value)
        )
        found["set_local_moment"] = written(
            lambda: local_state(parameter, name), lambda value: safe_set_local_optimizer_state(parameter, value, name)
        )
    found["step"] = away_and_back(forward_and_backward)
    found["next_pause"] = away_and_back(pause_again)
    folder = common.shared_folder()
    found["save"] = away_and_back(lambda: engine.save_checkpoint(folder, tag="one"))
    found["load"] = away_and_back(lambda: engine.load_checkpoint(folder, tag="one")[0] is not None)
    if shape.stage > 0:
        found["after_load"] = away_and_back(lambda: full_master(parameter).numel() > 0)
    found["state_dict"] = away_and_back(lambda: len(engine.optimizer.state_dict()) > 0)
    # Gradients come back with the parameters, so that nobody waits for them. ZeRO-1 has them at the boundary only.
    ids = torch.arange(12).unsqueeze(0) + RANK
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    gradient = full_gradient(parameter).clone()
    found["gradient"] = away_and_back(lambda: torch.equal(full_gradient(parameter), gradient))
    found["gradient"]["is_zero"] = not bool(gradient.any())
    scheduler.step()
    handle.remove()
    memory.pool.wait = real_wait
    memory.detach()
    engine.destroy()
    return found


def accelerated(memory: Any) -> dict[str, Any]:
    """An engine that Accelerator.prepare builds has the losses of a plain one, with pauses after every micro-batch."""
    shape = Shape("zero2", 2, accumulation=2)
    batches = [torch.arange(12).unsqueeze(0) + 7 * step + RANK for step in range(6)]
    plain: list[float] = []
    engine = common.build(shape, None)
    for ids in batches:
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        plain.append(loss.item())
    engine.destroy()

    accelerator = Accelerator(
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=shape.config()),
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")],
    )
    with memory:
        policy = common.model(shape)
        policy, optimizer = accelerator.prepare(policy, torch.optim.AdamW(policy.parameters(), lr=1e-2))
    memory.attach(policy)
    paused: list[float] = []
    gate: list[tuple[bool, bool]] = []
    for ids in batches:
        with accelerator.accumulate(policy):
            loss = policy(input_ids=ids, labels=ids).loss
            closed = memory.gate.closed
            accelerator.backward(loss)
            gate.append((closed, memory.gate.closed))
            optimizer.step()
            optimizer.zero_grad()
        paused.append(loss.item())
        memory.pause("all")
        memory.resume(wait=False)
    found = {
        "plain": plain,
        "paused": paused,
        "gate": gate,
        "steps": policy.global_steps,
        "complete": memory.complete,
        "is_the_engine": getattr(accelerator.deepspeed_engine_wrapped, "engine", None) is policy,
    }
    memory.detach()
    return found


def main() -> None:
    deepspeed.init_distributed("gloo")
    results: dict[str, Any] = {"numpy": np.__version__, "argv": sys.argv[1:]}
    memory = baton.training_memory(segment_bytes=int(os.environ["BATON_STANDIN_GRANULARITY"]))
    # In float32 without ZeRO the engine's optimizer is the script's own, which is hooked and not wrapped.
    results["returning0"] = returning(Shape("zero0", 0, "float32", accumulation=2), memory)
    for stage in (1, 2, 3):
        results[f"returning{stage}"] = returning(Shape(f"zero{stage}", stage, accumulation=2), memory)
    results["accelerated"] = accelerated(memory)
    results["placement"] = placement()
    common.finish(results)


if __name__ == "__main__":
    main()
