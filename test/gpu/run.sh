#!/bin/bash
# Everything of Baton that needs a real GPU, on GPU 0: about 60 minutes on an H100, or the parts that are named.
#
#     test/gpu/run.sh [FOLDER FOR RESULTS [CHECK ...]]       without names: all of them
#
#     pool zero3 zero2 zero1 fusedadam middle large    the pool and DeepSpeed alone, about five minutes
#     vllm                                             the vLLM adapter alone (vllm.sh; its parts side by side)
#     tokens node handoffs kills grpo eval trl         whole runs: the controller, DeepSpeed and vLLM together
#
# All need python3 with torch (CUDA), deepspeed, transformers, nvidia-ml-py and numpy; a built libbaton (BATON_LIBRARY, or
# build/Release of the checkout); nvcc for DeepSpeed's FusedAdam. Those of the last two lines need vLLM; whole runs Node.js,
# a built checkout and, but for tokens, a folder with SmolLM2-135M-Instruct in BATON_CHECK_MODEL; eval a folder with GSM8K's
# test.jsonl in BATON_CHECK_DATA; trl TRL 1.16.
#
# Prints a summary. Exit code 1: a check failed; 3: none did, but some did not run for lack of what they need; 2: there is
# no check of that name.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$(mktemp -d)}
mkdir -p "$out"
out=$(cd "$out" && pwd)
wanted=" ${*:2} "
export PYTHONPATH="$here/../../python/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# DeepSpeed cannot read "9.0a", which some images set.
TORCH_CUDA_ARCH_LIST=$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 1
export TORCH_CUDA_ARCH_LIST
failed=()
missing=()
known=" "
limit=300

# Whether the check of this name shall run.
named() {
  known+="$1 "
  [ "$wanted" = "  " ] || [[ $wanted == *" $1 "* ]]
}

run() {
  local name=$1
  echo "== $name"
  timeout "$limit" "${@:2}" 2>&1 | tee "$out/$name.log" | grep -vE "\[INFO\]|Warning|warn"
  [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$name")
}

check() {
  named "$1" || return 0
  run "$1" python3 "${@:2}" --json "$out/$1.json"
}

has_module() {
  python3 -c "import sys, importlib.util; sys.exit(importlib.util.find_spec('$1') is None)"
}

# Whether all that the check needs is here; notes what is not.
provided() {
  local name=$1 need lacking=()
  for need in "${@:2}"; do
    case $need in
      vllm) has_module vllm || lacking+=("vLLM") ;;
      trl) has_module trl || lacking+=("TRL") ;;
      node) command -v node >/dev/null || lacking+=("Node.js") ;;
      *) [ -n "${!need:-}" ] || lacking+=("$need") ;;
    esac
  done
  [ ${#lacking[@]} -eq 0 ] || missing+=("$name (no ${lacking[*]})")
  [ ${#lacking[@]} -eq 0 ]
}

# Compiled at first use, which takes a minute; meanwhile other things are checked.
python3 -c "from deepspeed.ops.op_builder import FusedAdamBuilder; FusedAdamBuilder().load()" \
  >"$out/fusedadam_build.log" 2>&1 &
build=$!
cd "$here" || exit 1
check pool pool_check.py
check zero3 training_check.py zero3 zero3-foreach-subgroups zero3-frozen-reference
check zero2 training_check.py zero2 zero2-model-outside zero2-frozen-reference
check zero1 training_check.py zero1 zero1-fp32-gradients zero0
wait "$build" || echo "DeepSpeed's FusedAdam could not be built; see $out/fusedadam_build.log"
check fusedadam training_check.py zero3-fusedadam zero2-fusedadam
check middle training_check.py --size 0.5b zero2
check large training_check.py --size 1.5b --extra 6 zero3 zero2

limit=600
if named vllm && provided vllm vllm; then OUT="$out/vllm" run vllm ./vllm.sh; fi

# Whole runs: its name, what it needs beside vLLM and Node.js, its script and arguments.
whole() {
  local name=$1 needs=$2
  named "$name" || return 0
  # shellcheck disable=SC2086  # needs are words
  provided "$name" vllm node $needs && run "$name" python3 "$3" "$out/$name" "${@:4}" --json "$out/$name.json"
}
smollm2=(--model "${BATON_CHECK_MODEL:-}")
whole tokens "" tokens_check.py
whole node BATON_CHECK_MODEL node_check.py "${smollm2[@]}"
whole handoffs BATON_CHECK_MODEL handoffs_check.py "${smollm2[@]}"
whole kills BATON_CHECK_MODEL kill_check.py "${smollm2[@]}"
whole grpo BATON_CHECK_MODEL grpo_check.py "${smollm2[@]}"
whole trl "BATON_CHECK_MODEL trl" trl_check.py "${smollm2[@]}"
# `baton eval` against a plain loop, on sums and on GSM8K's test.jsonl.
whole eval "BATON_CHECK_MODEL BATON_CHECK_DATA" eval_check.py "${smollm2[@]}" --data "${BATON_CHECK_DATA:-}"

echo
grep -hE "checks passed|  failed:|^[a-z]+: exit status" "$out"/*.log
echo "results: $out"
unknown=()
for name in $wanted; do
  [[ $known == *" $name "* ]] || unknown+=("$name")
done
[ ${#missing[@]} -eq 0 ] || printf 'NOT RUN: %s\n' "${missing[@]}"
[ ${#failed[@]} -eq 0 ] || echo "FAILED: ${failed[*]}"
[ ${#unknown[@]} -eq 0 ] || echo "NO SUCH CHECK: ${unknown[*]}; there are:$known"
[ ${#failed[@]} -eq 0 ] || exit 1
[ ${#unknown[@]} -eq 0 ] || exit 2
[ ${#missing[@]} -eq 0 ] || exit 3
