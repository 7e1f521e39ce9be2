"""TRL's tests that say nothing of BatonGRPOTrainer, or that it cannot pass, and why. By a part of their names."""

from __future__ import annotations

ANOTHER_MODEL = "the engines of this run have Qwen2's weights, and the test trains another model"
EVALUATE_FIRST = (
    "evaluates without training; with DeepSpeed TRL cannot either, but under ZeRO-3, and Baton has no engine yet"
)
REFUSED = "sets an option that Baton refuses at the start: "
ENGINE = "mocks or asks for transformers' own generation, which does not take place"

REASONS: dict[str, str] = {
    "TestGRPOTrainerVLM": "images: prompts are tokens",
    "TestGRPOTrainerSlow": "needs liger, images, or a vLLM of TRL's own",
    "TestGRPORolloutDispatch": REFUSED + "rollout_func",
    "TestTransformersContinuousBatchingContract": ENGINE,
    "test_train[trl-internal-testing/tiny-Cohere2": ANOTHER_MODEL,
    "test_train[trl-internal-testing/tiny-Glm4Moe": ANOTHER_MODEL,
    "test_train[trl-internal-testing/tiny-GptOss": ANOTHER_MODEL,
    "test_train[trl-internal-testing/tiny-Qwen3Moe": ANOTHER_MODEL,
    "test_train[trl-internal-testing/tiny-NemotronH": ANOTHER_MODEL,
    "test_train_moe_peft_model": ANOTHER_MODEL,
    "test_trust_remote_code": ANOTHER_MODEL,
    "test_train_with_chat_template_kwargs": ANOTHER_MODEL,
    "test_evaluate_with_eval_dataset": EVALUATE_FIRST,
    "test_train_loss_types[vespo": "with an engine TRL itself asks for vllm_importance_sampling_mode='token_truncate'",
    "test_train_with_sync_ref_model": REFUSED + "sync_ref_model",
    "test_train_with_cast_lm_head_to_fp32": REFUSED + "cast_lm_head_to_fp32",
    "test_train_with_additional_generation_kwargs": REFUSED + "repetition_penalty",
    "test_train_with_generation_kwargs": REFUSED + "num_beams, length_penalty and others in generation_kwargs",
    "test_train_vllm": "skipped by TRL itself",
    "with_tools": ENGINE + "; test/integration/trl.test.ts runs the loop of tool calls",
    "test_train_with_environment": ENGINE,
    "test_train_with_multiple_environments": ENGINE,
    "test_train_with_unknown_environment": ENGINE,
    "environment_owned_reward": ENGINE,
    "malformed_tool_calls": ENGINE,
    "liger": "liger-kernel is not installed; its errors are TRL's own",
}


def reason(node: str) -> str | None:
    """Why the test with this node id does not apply; None when it does."""
    return next((why for part, why in REASONS.items() if part in node), None)
