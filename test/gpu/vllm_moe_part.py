"""Models in vLLM whose weights do not lie as the trainer has them, or whose tensors Baton does not know by heart.

A mixture of experts: recorded and copied all the same, and by the engine's own `load_weights` at every sync. A Qwen3, with
norms of its heads, whose trainer has float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm_adapter_parts import check_greedy, check_logprobs, engine_of, gpu_run
from vllm_common import Results, named

#: Qwen3-30B-A3B, shrunk. Its router and its experts have names and layouts of their own in vLLM.
MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "initializer_range": 0.05,
    "torch_dtype": "bfloat16",
}


def checkpoint_tensors(folder: Path, model: Any) -> dict[str, Any]:
    """As the model's checkpoint names them: transformers keeps all experts of a layer in one tensor, vLLM's
    `load_weights` knows each by itself."""
    from safetensors.torch import load_file

    model.save_pretrained(folder)
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def model_of(folder: Path, name: str, config: dict[str, Any], dtype: Any) -> Any:
    """Random, and its config.json in model-NAME."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    where = folder / f"model-{name}"
    where.mkdir(exist_ok=True)
    (where / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(where), dtype=dtype)


def moe(folder: Path, part: str) -> Results:
    """`moe` by copies, `moe-loads` by load_weights."""
    import harness
    import torch

    results, loads = Results(folder, part), part == "moe-loads"
    model = model_of(folder, part, MOE, torch.bfloat16)
    tensors = checkpoint_tensors(folder / f"{part}-checkpoint", model)
    with gpu_run() as run:
        engine = engine_of(run, folder, part, part, sync="load_weights" if loads else "copies").connect()
        results.note("ready", {"weights": engine.ready.weight_bytes, "cache": engine.ready.cache_bytes})
        ranks = harness.Ranks(run, tensors, 1, 2)
        synced = engine.handoff(ranks, compare=True)
        fallback = engine.plans[0].fallback
        results.check("by load_weights" if loads else "by copies", (fallback is not None) == loads, fallback)
        results.check("sums agree", synced.sums_agree)
        compared = synced.workers[0].compared
        results.check("equal to load_weights", compared == (None if loads else []), compared)
        model.cuda()
        # A router that rounds the other way takes another expert: single tokens differ by far more than in a dense
        # model. That the weights are the right ones is proven above, and by the mean here.
        check_greedy(results, engine, model, folder, part, largest=1.0)
        check_logprobs(results, "of a mixture of experts", engine, model, 1.0, 1.0, largest=3.0)
        engine.sleep()
        results.check("ends in order", engine.shutdown() == 0)
    return results


def rounded(folder: Path, part: str) -> Results:
    """A float32 trainer of a Qwen3, and an engine in bfloat16."""
    import harness
    import torch

    results = Results(folder, part)
    trainer = model_of(folder, part, QWEN3, torch.float32)
    with torch.no_grad():
        for parameter in trainer.parameters():
            if parameter.dim() == 1:  # ones would hide a missing norm
                parameter.add_(torch.randn_like(parameter) * 0.1)
    with gpu_run() as run:
        engine = engine_of(run, folder, part, part).connect()
        results.check("its tensors are known at start", engine.ready.weight_bytes > 0, engine.ready.weight_bytes)
        synced = engine.handoff(harness.Ranks(run, named(trainer), 1, 2), compare=True)
        results.check("by copies", engine.plans[0].fallback is None, engine.plans[0].fallback)
        results.check("sums agree", synced.sums_agree)
        results.check("equal to load_weights", synced.workers[0].compared == [], synced.workers[0].compared)
        with torch.no_grad():
            engines = trainer.bfloat16().cuda()
        check_greedy(results, engine, engines, folder, part)
        check_logprobs(results, "of a rounded Qwen3", engine, engines, 1.0, 1.0)
        engine.sleep()
        results.check("ends in order", engine.shutdown() == 0)
    return results
