"""What the engines say greedily with the trainer's weights is what a model says that loaded the same checkpoint.

    tokens_check.py FOLDER [--gpus N] [--engines M] [--zero 2 3] [--simulated] [--json FILE]

On real GPUs that is vLLM with the same tensor parallelism, which read the checkpoint from disk; on stand-ins
transformers, in float32. A completion may leave the other one only where rounding decides: batches of another size sum
in another order. Every sync of the runs is compared by checksum, the first one with the engine's own load_weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from run_support import HERE, Run, add_node_options, node_of, write_recipe
from small_model import write_checkpoint
from support import Checks
from tokens_rank import PROMPTS, TOKENS

RUN_SECONDS = 280
#: Where the two best tokens are nearer than this, rounding to bfloat16 may decide: some four times what it does to a
#: logprob of this model on average. Two layers' q_proj swapped change three tokens of four, some by more than 1.
TIE = 0.05

#: The tokens of a completion, and by how much the logprob of each was above that of the next best one.
Said = list[tuple[int, float]]


def loaded_by_vllm(model: Path, tensor_parallel: int) -> list[Said]:
    os.environ.update(VLLM_WORKER_MULTIPROC_METHOD="spawn", VLLM_NO_USAGE_STATS="1", NCCL_NVLS_ENABLE="0")
    from vllm import LLM, SamplingParams  # pyright: ignore

    llm = LLM(
        str(model),
        tensor_parallel_size=tensor_parallel,
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="bfloat16",
        max_model_len=128,
        max_num_seqs=256,
        gpu_memory_utilization=0.02,
        kv_cache_memory_bytes=1 << 30,
        generation_config="vllm",
        disable_log_stats=True,
    )
    parameters = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False, logprobs=2)
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    said = []
    for output in llm.generate(prompts, parameters, use_tqdm=False):
        completion = output.outputs[0]
        best = [sorted((one.logprob for one in at.values()), reverse=True) for at in completion.logprobs]
        said.append([(token, two[0] - two[1]) for token, two in zip(completion.token_ids, best, strict=True)])
    return said


def loaded_by_transformers(model: Path) -> list[Said]:
    import torch
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    said = []
    for prompt in PROMPTS:
        completion: Said = []
        with torch.no_grad():
            for _ in range(TOKENS):
                ids = [*prompt, *(token for token, _ in completion)]
                best = policy(torch.tensor([ids])).logits[0, -1].float().topk(2)
                completion.append((int(best.indices[0]), float(best.values[0] - best.values[1])))
        said.append(completion)
    return said


def compared(said: list[list[int]], expected: list[Said]) -> tuple[int, float]:
    """How many tokens are the same, up to the first of a completion that is not, and how far ahead the expected token
    was where it was missed by most (0: never missed)."""
    same, missed = 0, 0.0
    for completion, wanted in zip(said, expected, strict=True):
        for token, (best, ahead) in zip(completion, wanted, strict=True):
            if token != best:
                missed = max(missed, ahead)
                break
            same += 1
    return same, missed


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    add_node_options(parser)
    parser.add_argument("--zero", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--json")
    parser.add_argument("--loaded", type=Path, help="only: write what vLLM says of the checkpoint in this folder")
    options = parser.parse_args()
    folder, node = options.folder.resolve(), node_of(options)
    if options.loaded:
        options.loaded.write_text(json.dumps(loaded_by_vllm(folder, node.tensor_parallel)))
        return 0
    checks = Checks(f"tokens, {node.gpus} GPUs, {node.engines} engines of TP={node.tensor_parallel}")
    model = write_checkpoint(folder / "model", node.simulated)
    dtype = "float32" if node.simulated else "bfloat16"
    runs = {}
    for zero in options.zero:
        engine = {"cacheBytes": "1GiB", "options": {"enforceEager": True}, "dtype": dtype}
        recipe = write_recipe(folder / f"zero{zero}", model, node=node, **engine)
        script = [str(HERE / "tokens_rank.py"), "--model", str(model), "--zero", str(zero), "--dtype", dtype]
        runs[zero] = Run(recipe, [*script, "--out", str(recipe.parent)])
        if node.simulated:
            runs[zero].wait(RUN_SECONDS)  # two at once are too much for a small machine
    expected = None
    if node.simulated:
        expected = loaded_by_transformers(model)
    else:
        # A process of its own, so that its GPU memory is gone with it; beside the runs, since all of them are small.
        said = folder / "loaded.json"
        command = [sys.executable, __file__, str(model), "--gpus", str(node.gpus), "--engines", str(node.engines)]
        with (folder / "loaded.log").open("w") as log:
            subprocess.run([*command, "--loaded", str(said)], stdout=log, stderr=log, timeout=RUN_SECONDS, check=False)
        if said.exists():
            expected = json.loads(said.read_text())
        checks.that("vLLM loads the checkpoint", expected is not None, (folder / "loaded.log").read_text()[-2000:])
    for zero, run in runs.items():
        name = f"zero{zero}"
        status = run.wait(RUN_SECONDS)
        checks.that(f"{name}: the run ends in good order", status == 0, run.output(3000))
        summary = run.summary()
        if status != 0 or summary is None:
            continue
        passed, failed = (summary["checks"][f"weightChecksums{what}"] for what in ("Passed", "Failed"))
        checks.that(f"{name}: checksums ({passed} tensors)", passed > 0 and failed == 0, str(summary["checks"]))
        checks.that(f"{name}: simulated or not", summary["simulated"] is node.simulated)
        notes = [event["message"] for event in run.events() if event["type"] == "note"]
        checks.that(f"{name}: copied, not loaded", not any("load_weights" in note for note in notes), str(notes))
        said = [json.loads((run.folder / f"tokens-{rank}.json").read_text()) for rank in range(node.gpus)]
        if expected is None:
            continue
        count = sum(map(len, expected))
        for rank, rollouts in enumerate(said):
            for turn, completions in enumerate(rollouts, 1):
                same, missed = compared(completions, expected)
                found = f"{same} of {count} tokens, the expected one missed by {missed:.3f} at most"
                good = missed < TIE and same > count / 4
                checks.that(f"{name}: rank {rank}, rollout {turn}, as the loaded checkpoint says ({found})", good)
    return checks.end(options.json)


if __name__ == "__main__":
    sys.exit(main())
