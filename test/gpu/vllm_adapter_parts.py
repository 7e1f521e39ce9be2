"""The parts of vllm_check.py that run Baton's adapter: is the engine the trainer, and what do its steps cost."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from vllm_common import (
    CACHE,
    CYCLES,
    GIB,
    PROMPTS,
    ROOT,
    Results,
    alone,
    big_tensors,
    common,
    config_folder,
    load_reference,
    named,
    spread,
    used_gib,
)


def gpu_run(**more: Any) -> Any:
    import harness

    class GpuRun(harness.Run):
        def environment(self, **variables: str) -> dict[str, str]:
            standin = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
            made = {k: v for k, v in super().environment(**variables).items() if "STANDIN" not in k}
            for name in standin:
                made.pop(name, None)
                if name in os.environ:
                    made[name] = os.environ[name]
            path = [str(ROOT / "python" / "src"), os.environ.get("PYTHONPATH", "")]
            return {**made, "PYTHONPATH": os.pathsep.join(filter(None, path))}

    return GpuRun(gpus=1, simulated=False, silence_seconds=900.0, **more)


def engine_of(run: Any, folder: Path, part: str, model: str, **more: Any) -> Any:
    import harness

    options: dict[str, Any] = {"enforceEager": True}
    if part == "graphs":
        options = {
            "compilationConfig": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
            "max_cudagraph_capture_size": 64,
        }
    return harness.Engine(
        run,
        config_folder(folder, model),
        tp=1,
        dtype="bfloat16",
        kind="vllm",
        max_model_length=1024,
        max_sequences=64,
        cache_bytes=CACHE.get(part, 2 * GIB),
        options=options,
        **more,
    )


def reference_logprobs(model: Any, prompt: list[int], completion: list[int], temperature: float) -> Any:
    import torch

    with torch.no_grad():
        ids = torch.tensor([prompt + completion], device="cuda")
        rows = torch.log_softmax(model(ids).logits[0].float() / temperature, -1)
        return rows[len(prompt) - 1 : -1], ids[0, len(prompt) :, None]


def check_logprobs(
    results: Results, name: str, engine: Any, model: Any, temperature: float, top_p: float, largest: float = 0.2
) -> None:
    """Against the trainer's model in bfloat16. How far that one is from itself in float32 is the yardstick: a random
    model of 30 layers is not as calm as a trained one."""
    import copy

    import numpy as np

    exact = copy.deepcopy(model).float()
    gaps, own, theirs = [], [], []
    groups = engine.generate(PROMPTS, samples=4, temperature=temperature, top_p=top_p, max_tokens=64)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for tokens, logprobs, _ in group:
            rows, index = reference_logprobs(model, prompt, tokens, temperature)
            trainer = rows.gather(1, index)[:, 0].cpu().numpy()
            rows, index = reference_logprobs(exact, prompt, tokens, temperature)
            truth = rows.gather(1, index)[:, 0].cpu().numpy()
            gaps.append(np.abs(trainer - logprobs))
            own.append(np.abs(trainer - truth))
            theirs.append(np.abs(logprobs - truth))
    found = np.concatenate(gaps)
    values = {
        "tokens": found.size,
        "mean": float(found.mean()),
        "max": float(found.max()),
        "trainer to float32": float(np.concatenate(own).mean()),
        "engine to float32": float(np.concatenate(theirs).mean()),
    }
    results.values[f"logprobs {name}"] = values
    noise = values["trainer to float32"]
    results.check(
        f"logprobs {name}",
        values["mean"] <= max(0.01, 2 * noise)
        and values["engine to float32"] <= max(0.01, 1.5 * noise)
        and values["max"] <= largest / min(1.0, temperature),
        values,
    )


def check_greedy(
    results: Results, engine: Any, model: Any, folder: Path, part: str, largest: float = 0.2
) -> None:
    """Whether they are vLLM's tokens for the checkpoint is compared when all parts have ended."""
    tokens = check_likeliest(results, "greedy", engine, model, largest, temperature=0.0)
    (folder / f"greedy-{part}").write_text(json.dumps(tokens))
    # Drawn, from the likeliest token alone.
    check_likeliest(results, "top-k 1", engine, model, largest, temperature=1.0, top_k=1)
    check_likeliest(results, "min-p 1", engine, model, largest, temperature=1.0, min_p=1.0)


def check_likeliest(
    results: Results, name: str, engine: Any, model: Any, largest: float, **sampling: float
) -> list[list[int]]:
    """A token that differs from the trainer's must be one that the trainer finds as likely, within bf16."""
    tokens = [group[0][0] for group in engine.generate(PROMPTS, max_tokens=64, **sampling)]
    worst, same, count = 0.0, 0, 0
    for prompt, completion in zip(PROMPTS, tokens, strict=True):
        rows, index = reference_logprobs(model, prompt, completion, 1.0)
        worst = max(worst, float((rows.max(-1).values - rows.gather(1, index)[:, 0]).max()))
        same += int((rows.argmax(-1) == index[:, 0]).sum())
        count += len(completion)
    found = f"{same} of {count} the same, worst gap {worst}"
    results.check(f"{name} tokens are as likely as the trainer's", worst <= largest and same >= 0.8 * count, found)
    return tokens


def adapter(folder: Path, part: str) -> Results:
    import harness

    results = Results(folder, part)
    first, second = load_reference(folder, 1), load_reference(folder, 2)
    with gpu_run() as run:
        began = time.monotonic()
        engine = engine_of(run, folder, part, "small").connect()
        results.note("start_seconds", round(time.monotonic() - began, 1))
        results.note("ready", {"weights": engine.ready.weight_bytes, "cache": engine.ready.cache_bytes})
        ranks = harness.Ranks(run, named(first), 1, 2)
        synced = engine.handoff(ranks, compare=True)
        results.check("copies, not load_weights", engine.plans[0].fallback is None, engine.plans[0].fallback)
        results.check("sums agree", synced.sums_agree)
        results.check("equal to load_weights", synced.workers[0].compared == [], synced.workers[0].compared)
        first.cuda()
        check_greedy(results, engine, first, folder, part)
        check_logprobs(results, "at 1.0", engine, first, 1.0, 1.0)
        check_logprobs(results, "at 0.7, top-p 0.9", engine, first, 0.7, 0.9)
        check_sampling(results, engine)
        before = engine.generate(PROMPTS, temperature=0.0, max_tokens=32)
        engine.sleep()
        ranks.train(named(second))
        synced = engine.handoff(ranks, compare=True)
        results.check("second epoch: sums agree", synced.sums_agree)
        results.check("second epoch: equal to load_weights", synced.workers[0].compared == [])
        second.cuda()
        check_logprobs(results, "second epoch", engine, second, 1.0, 1.0)
        after = engine.generate(PROMPTS, temperature=0.0, max_tokens=32)
        results.check("other weights, other tokens", [g[0][0] for g in before] != [g[0][0] for g in after])
        with alone(folder, part):
            cycle(results, engine, ranks)
            again = engine.generate(PROMPTS, temperature=0.0, max_tokens=32)
            results.check("same weights, same tokens", [g[0][0] for g in again] == [g[0][0] for g in after])
            engine.sleep()
            results.check("ends in order", engine.shutdown() == 0)
    return results


def check_sampling(results: Results, engine: Any) -> None:
    def tokens(groups: Any) -> list[list[list[int]]]:
        return [[sample[0] for sample in group] for group in groups]

    asked: dict[str, Any] = {"temperature": 1.0, "max_tokens": 24}
    one = tokens(engine.generate(PROMPTS, samples=3, seed=11, **asked))
    results.check("same seed, same tokens", one == tokens(engine.generate(PROMPTS, samples=3, seed=11, **asked)))
    results.check("other seed, other tokens", one != tokens(engine.generate(PROMPTS, samples=3, seed=12, **asked)))
    results.check("samples differ", all(group[0] != group[1] for group in one))
    alone_again = tokens(engine.generate(PROMPTS[3:4], samples=1, streams=[3], seed=11, **asked))[0][0]
    results.note("tokens that a request alone shares with the batch", common(alone_again, one[3][0]))
    stop = one[0][0][5]
    first = one[0][0].index(stop)
    (group,) = engine.generate(PROMPTS[:1], samples=1, seed=11, stop_token_ids=[stop], **asked)
    results.check(
        "stops, stop token included", group[0][0] == one[0][0][: first + 1] and group[0][2] == "stop", group[0][2]
    )


def cycle(results: Results, engine: Any, ranks: Any) -> None:
    """Sleep, wake weights, sync, wake cache, timed from outside; with the GPU's memory asleep and awake."""
    times: dict[str, list[float]] = {
        "sleep": [],
        "wake weights": [],
        "sync": [],
        "sync with checksums": [],
        "wake cache": [],
        "copy": [],
        "map": [],
    }
    awake = used_gib()
    asleep = []

    def timed(name: str, work: Any) -> Any:
        began = time.perf_counter()
        made = work()
        times[name].append(time.perf_counter() - began)
        return made

    agreed = True
    for _ in range(CYCLES):
        timed("sleep", engine.sleep)
        asleep.append(used_gib())
        timed("wake weights", lambda: engine.wake("weights"))
        synced = timed("sync", lambda: engine.sync(ranks, checksums=False))
        agreed &= timed("sync with checksums", lambda: engine.sync(ranks)).sums_agree
        times["copy"].append(synced.workers[0].copy_seconds)
        times["map"].append(synced.workers[0].map_seconds + synced.workers[0].unmap_seconds)
        timed("wake cache", lambda: engine.wake("kv_cache"))
    results.check("sums agree in every cycle", agreed)
    for name, values in times.items():
        results.note(name, spread(values))
    copied = synced.workers[0].copied_bytes
    results.note(
        "copied", {"bytes": copied, "runs": synced.workers[0].runs, "gb_per_s": copied / 1e9 / min(times["copy"])}
    )
    results.note("gpu", {"awake_gib": awake, "asleep_gib": asleep[-1], "again_awake_gib": used_gib()})
    mapped = (engine.ready.weight_bytes + engine.ready.cache_bytes) / GIB
    results.check(
        "sleep gives weights and cache back",
        awake - asleep[-1] >= mapped - 0.01,
        f"{awake - asleep[-1]} of {mapped} GiB",
    )
    results.check("sleeping does not grow", asleep[-1] - asleep[0] < 0.05, asleep)


def big(folder: Path, part: str) -> Results:
    import harness

    results = Results(folder, part)
    names = big_tensors()

    class SeedRanks(harness.Ranks):
        """The rank makes its tensors itself: 15 GB are too much for a file."""

        def __init__(self, run: Any) -> None:  # pyright: ignore
            self.run, self.stage = run, 2
            self.names = list(names)
            self.sizes = [shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in names.values()]
            spec = {"file": "", "world": 1, "stage": 2, "rank": 0, "names": self.names}
            spec |= {"shapes": [list(s) for s in names.values()], "dtypes": ["bfloat16"] * len(names)}
            spec |= {"segment_bytes": 256 << 20, "aligned": True}
            self.processes = [run.spawn([str(harness.HERE / "rank_process.py")], TEST_RANK=json.dumps(spec))]
            self.clients = [run.accept("rank", 0)]
            self.manifests = [self.clients[0].expect(harness.m.Manifest)[0]]

    with gpu_run() as run:
        began = time.monotonic()
        engine = engine_of(run, folder, part, "big").connect()
        results.note("start_seconds", round(time.monotonic() - began, 1))
        ranks = SeedRanks(run)
        synced = engine.handoff(ranks, compare=True)
        results.check("copies, not load_weights", engine.plans[0].fallback is None, engine.plans[0].fallback)
        results.check("sums agree", synced.sums_agree)
        results.check("equal to load_weights", synced.workers[0].compared == [], synced.workers[0].compared)
        first = engine.generate(PROMPTS, temperature=0.0, max_tokens=16)
        with alone(folder, part):
            cycle(results, engine, ranks)
            again = engine.generate(PROMPTS, temperature=0.0, max_tokens=16)
            results.check("same weights, same tokens", [g[0][0] for g in first] == [g[0][0] for g in again])
            engine.sleep()
            results.check("ends in order", engine.shutdown() == 0)
    return results
