"""The vLLM adapter on one real GPU: is the engine the trainer, does its memory go, and how long does it take.

`vllm_check.py all FOLDER` starts the parts below side by side (a start of vLLM takes over a minute) and lets them take
turns for what is timed. Each part prints what it finds and writes FOLDER/PART.json; the exit status says whether every
check held.

    eager, graphs  the adapter with a model of SmolLM2's shape: weights, tokens, logprobs, memory, a second epoch
    stock          vLLM alone with the same checkpoint from disk: its tokens, its own sleep and wake
    big, bigstock  the same times with a model of Qwen2.5-7B's shape
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python" / "src"), str(ROOT / "python" / "tests" / "engines")]
os.environ.setdefault("BATON_TEST_SECONDS", "540")

GIB = 1 << 30
PARTS = ("eager", "graphs", "stock", "big", "bigstock")
CYCLES = 10
SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
}
BIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
}
CACHE = {"eager": 2 * GIB, "graphs": 2 * GIB, "stock": 2 * GIB, "big": 16 * GIB, "bigstock": 16 * GIB}
PROMPTS = [[(7 * i + 13 * j + 5) % 40000 + 10 for j in range(4 + 5 * i)] for i in range(8)]


class Results:
    """Checks and figures of one part."""

    def __init__(self, folder: Path, part: str) -> None:
        self.path = folder / f"{part}.json"
        self.values: dict[str, Any] = {}
        self.failed: list[str] = []

    def check(self, name: str, holds: bool, found: Any = None) -> None:
        print(f"{'ok  ' if holds else 'FAIL'} {name}" + ("" if found is None else f": {found}"), flush=True)
        if not holds:
            self.failed.append(name)
        self._write()

    def note(self, name: str, value: Any) -> None:
        print(f"     {name}: {value}", flush=True)
        self.values[name] = value
        self._write()

    def _write(self) -> None:
        self.path.write_text(json.dumps({"failed": self.failed, **self.values}, indent=1))


def used_gib() -> float:
    import pynvml

    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used / GIB


@contextlib.contextmanager
def alone(folder: Path, part: str, seconds: float = 150.0) -> Any:
    """One part at a time, when all of them have started or ended."""
    (folder / f"started-{part}").touch()
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        waiting = os.environ["CHECK_PARTS"].split(",")
        if all((folder / f"started-{other}").exists() for other in waiting):
            break
        time.sleep(0.2)
    with (folder / "turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        time.sleep(2.0)  # whoever had the last turn may still be letting go
        yield


def spread(values: list[float]) -> dict[str, float]:
    """Milliseconds: the first, and median and largest of the others."""
    later = sorted(values[1:]) or values
    return {
        "first_ms": round(values[0] * 1e3, 3),
        "p50_ms": round(later[len(later) // 2] * 1e3, 3),
        "max_ms": round(later[-1] * 1e3, 3),
    }


def config_folder(folder: Path, name: str) -> str:
    return str(folder / f"model-{name}")


def prepare(folder: Path) -> None:
    """The random model of SmolLM2's shape as a checkpoint on disk, and the config of the big one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, values in (("small", SMALL), ("big", BIG)):
        (folder / f"model-{name}").mkdir(exist_ok=True)
        (folder / f"model-{name}" / "config.json").write_text(json.dumps(values))
    for epoch in (1, 2):
        torch.manual_seed(epoch)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder / "model-small"), dtype=torch.bfloat16
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # ones would hide a missing norm
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        target = folder / f"checkpoint-{epoch}"
        model.save_pretrained(target)
        (target / "config.json").write_text(json.dumps(SMALL))


# ---- the adapter -----------------------------------------------------------------------------------------


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
        cache_bytes=CACHE[part],
        options=options,
        **more,
    )


def reference_logprobs(model: Any, prompt: list[int], completion: list[int], temperature: float) -> Any:
    import torch

    with torch.no_grad():
        ids = torch.tensor([prompt + completion], device="cuda")
        rows = torch.log_softmax(model(ids).logits[0].float() / temperature, -1)
        return rows[len(prompt) - 1 : -1], ids[0, len(prompt) :, None]


def check_logprobs(results: Results, name: str, engine: Any, model: Any, temperature: float, top_p: float) -> None:
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
        and values["max"] <= 0.2 / min(1.0, temperature),
        values,
    )


def check_greedy(results: Results, engine: Any, model: Any, folder: Path, part: str) -> None:
    """A token that differs from the trainer's must be one that the trainer finds as likely, within bf16. Whether they
    are vLLM's tokens for the checkpoint is compared when all parts have ended."""
    groups = engine.generate(PROMPTS, temperature=0.0, max_tokens=64)
    tokens = [group[0][0] for group in groups]
    (folder / f"greedy-{part}").write_text(json.dumps(tokens))
    worst, same, count = 0.0, 0, 0
    for prompt, completion in zip(PROMPTS, tokens, strict=True):
        rows, index = reference_logprobs(model, prompt, completion, 1.0)
        worst = max(worst, float((rows.max(-1).values - rows.gather(1, index)[:, 0]).max()))
        same += int((rows.argmax(-1) == index[:, 0]).sum())
        count += len(completion)
    found = f"{same} of {count} the same, worst gap {worst}"
    results.check("greedy tokens are as likely as the trainer's", worst <= 0.2 and same >= 0.8 * count, found)


def load_reference(folder: Path, epoch: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / f"checkpoint-{epoch}", dtype=torch.bfloat16)


def named(model: Any) -> dict[str, Any]:
    return {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}


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


def common(left: list[int], right: list[int]) -> str:
    same = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), len(left))
    return f"{same} of {len(left)}"


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


def big_tensors() -> dict[str, tuple[int, ...]]:
    from baton.engines.small import config

    return dict(config.parse(BIG).checkpoint_tensors())


# ---- vLLM alone ------------------------------------------------------------------------------------------


def stock(folder: Path, part: str) -> Results:
    os.environ.update(VLLM_ALLOW_INSECURE_SERIALIZATION="1", VLLM_WORKER_MULTIPROC_METHOD="spawn")
    from vllm import LLM, SamplingParams

    results = Results(folder, part)
    small = part == "stock"
    began = time.monotonic()
    llm = LLM(
        str(folder / "checkpoint-1") if small else config_folder(folder, "big"),
        load_format="auto" if small else "dummy",
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_sleep_mode=True,
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=64,
        gpu_memory_utilization=0.02,
        kv_cache_memory_bytes=CACHE[part],
        generation_config="vllm",
        disable_log_stats=True,
        weight_transfer_config={"backend": "ipc"},
    )
    results.note("start_seconds", round(time.monotonic() - began, 1))
    prompts: Any = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True, detokenize=False)
    tokens = [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params, use_tqdm=False)]
    (folder / f"greedy-{part}").write_text(json.dumps(tokens))
    with alone(folder, part):
        times: dict[str, list[float]] = {"sleep": [], "wake weights": [], "wake cache": []}
        awake, asleep = used_gib(), 0.0
        for _ in range(CYCLES):
            for name, work in (
                ("sleep", lambda: llm.sleep(2)),
                ("wake weights", lambda: llm.wake_up(["weights"])),
                ("wake cache", lambda: llm.wake_up(["kv_cache"])),
            ):
                at = time.perf_counter()
                work()
                times[name].append(time.perf_counter() - at)
                if name == "sleep":
                    asleep = used_gib()
        for name, values in times.items():
            results.note(name, spread(values))
        results.note("gpu", {"awake_gib": awake, "asleep_gib": asleep})
        try:
            transfer(results, llm, folder, small)
        except Exception as error:
            results.note("ipc transfer", f"not measured: {type(error).__name__}: {error}")
    return results


def transfer(results: Results, llm: Any, folder: Path, small: bool) -> None:
    """vLLM's own IPC weight transfer, as its documentation says, from tensors of this process."""
    import torch
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine

    if small:
        tensors = [(name, tensor.cuda()) for name, tensor in named(load_reference(folder, 1)).items()]
    else:
        tensors = [
            (name, torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02))
            for name, shape in big_tensors().items()
        ]
    total = sum(tensor.numel() * 2 for _, tensor in tensors)
    size = 4 * GIB
    flat = torch.empty(size, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(flat)
    limit = []
    for _ in range(8):
        torch.cuda.synchronize()
        at = time.perf_counter()
        other.copy_(flat)
        torch.cuda.synchronize()
        limit.append(time.perf_counter() - at)
    results.note("device to device copy", {"gb_per_s": size / 1e9 / min(limit), **spread(limit)})
    del flat, other
    torch.cuda.empty_cache()
    llm.init_weight_transfer_engine({"init_info": {}})
    times = []
    for _ in range(4):
        at = time.perf_counter()
        llm.start_weight_update()
        IPCWeightTransferEngine.trainer_send_weights(
            iter(tensors),
            {"send_mode": lambda info: llm.update_weights({"update_info": dict(vars(info))}), "packed": False},
        )
        torch.cuda.synchronize()
        llm.finish_weight_update()
        times.append(time.perf_counter() - at)
    results.note("ipc transfer", {"bytes": total, **spread(times)})


# ---- all -------------------------------------------------------------------------------------------------


def everything(folder: Path, parts: list[str]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("started-*"):
        old.unlink()
    prepare(folder)
    environment = {**os.environ, "CHECK_PARTS": ",".join(parts)}
    running = {}
    for part in parts:
        log = (folder / f"{part}.log").open("w")
        running[part] = subprocess.Popen(
            [sys.executable, __file__, part, str(folder)], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    status = {}
    while len(status) < len(parts):
        for part, process in running.items():
            if part not in status and process.poll() is not None:
                status[part] = process.returncode
                (folder / f"started-{part}").touch()  # nobody waits for one that has ended
                print(f"{part}: exit status {process.returncode}", flush=True)
        time.sleep(0.2)
    if {"eager", "stock"} <= set(parts) and all((folder / f"greedy-{part}").exists() for part in ("eager", "stock")):
        ours, theirs = (json.loads((folder / f"greedy-{part}").read_text()) for part in ("eager", "stock"))
        shared = [common(a, b) for a, b in zip(ours, theirs, strict=True)]
        print(f"greedy tokens shared with vLLM that loaded the checkpoint, by prompt: {shared}", flush=True)
        if ours != theirs:
            status["greedy"] = 1
    return int(any(status.values()))


def main() -> int:
    what, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if what == "all":
        return everything(folder, sys.argv[3:] or list(PARTS))
    work = {"eager": adapter, "graphs": adapter, "big": big, "stock": stock, "bigstock": stock}[what]
    results = work(folder, what)
    print("failed: " + (", ".join(results.failed) or "nothing"), flush=True)
    return int(bool(results.failed))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
