#!/bin/bash
# TRL's own tests of its GRPOTrainer with BatonGRPOTrainer in its place, as the one rank of a run.
#
#     git clone --branch v1.16.0 https://github.com/huggingface/trl CHECKOUT
#     test/trl/run.sh CHECKOUT [--stock] [words for pytest, such as -k loss_types]
#
# --stock: with TRL's trainer itself, to see which tests pass on this machine at all. The models and data of the tests
# are made by local_hub.py. Without a GPU it runs on a stand-in.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${BATON_PYTHON:-$root/.venv/bin/python}
checkout=$(cd "$1" && pwd)
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export SUITE_HUB="$work/hub" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 BATON_PYTHON="$python"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" PATH="$(dirname "$python"):$PATH"
if ! nvidia-smi >/dev/null 2>&1; then
  export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=
  gpus='gpus: {simulated: {memoryBytes: 512MiB}}'
fi
"$python" -c 'import local_hub, os, pathlib; local_hub.make(pathlib.Path(os.environ["SUITE_HUB"]))' >/dev/null 2>&1
if [[ " $* " == *" --stock "* ]]; then
  "$python" "$here/suite.py" "$checkout" "$@"
  exit
fi
cat >"$work/deepspeed.json" <<'JSON'
{
  "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
  "steps_per_print": 1000000,
  "zero_optimization": {"stage": 2, "reduce_bucket_size": 262144, "allgather_bucket_size": 262144}
}
JSON
cat >"$work/accelerate.yaml" <<YAML
compute_environment: LOCAL_MACHINE
deepspeed_config: {deepspeed_config_file: $work/deepspeed.json, zero3_init_flag: false}
distributed_type: DEEPSPEED
machine_rank: 0
main_training_function: main
num_machines: 1
num_processes: 1
YAML
# The tests' learning rate of 0.1 makes weights whose logprobs are far from 0, and so is their rounding.
cat >"$work/recipe.yaml" <<YAML
engine: {model: $work/hub/trl-internal-testing/tiny-Qwen2ForCausalLM-2.5, dtype: float32, maxModelLength: 1024, maxSequences: 32}
checks: {logprobMaxBound: 0.05, logprobMeanBound: 0.01}
${gpus:-}
out: $work/out
YAML
node "$root/dist/cli/main.js" run "$work/recipe.yaml" --ranks 1 -- \
  accelerate launch --config_file "$work/accelerate.yaml" "$here/suite.py" "$checkout" "$@"
