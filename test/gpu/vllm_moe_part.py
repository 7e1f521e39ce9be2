"""A mixture of experts in vLLM, whose weights Baton does not know by heart: recorded and copied all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm_adapter_parts import check_greedy, check_logprobs, engine_of, gpu_run
from vllm_common import Results

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


def moe(folder: Path, part: str) -> Results:
    import harness
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    results = Results(folder, part)
    (folder / "model-moe").mkdir(exist_ok=True)
    (folder / "model-moe" / "config.json").write_text(json.dumps(MOE))
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(folder / "model-moe")
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tensors = checkpoint_tensors(folder / "moe-checkpoint", model)
    with gpu_run() as run:
        engine = engine_of(run, folder, part, "moe").connect()
        results.note("ready", {"weights": engine.ready.weight_bytes, "cache": engine.ready.cache_bytes})
        ranks = harness.Ranks(run, tensors, 1, 2)
        synced = engine.handoff(ranks, compare=True)
        results.note("fallback", engine.plans[0].fallback)
        results.check("sums agree", synced.sums_agree)
        results.check("equal to load_weights", synced.workers[0].compared in (None, []), synced.workers[0].compared)
        model.cuda()
        # A router that rounds the other way takes another expert: single tokens differ by far more than in a dense
        # model. That the weights are the right ones is proven above, and by the mean here.
        check_greedy(results, engine, model, folder, part, largest=1.0)
        check_logprobs(results, "of a mixture of experts", engine, model, 1.0, 1.0, largest=3.0)
        engine.sleep()
        results.check("ends in order", engine.shutdown() == 0)
    return results
