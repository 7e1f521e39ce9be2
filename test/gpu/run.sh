#!/bin/bash
# Everything of Baton that needs a real GPU, on GPU 0. Prints a summary; exit code 1 when anything fails.
#
#     test/gpu/run.sh [FOLDER FOR RESULTS [CHECK ...]]       without names: all of them
#
# Needs python3 with torch (CUDA), deepspeed, transformers, nvidia-ml-py and numpy; a built libbaton (BATON_LIBRARY,
# or build/Release of the checkout); nvcc for DeepSpeed's FusedAdam. About five minutes on an H200. The checks of whole
# runs (node, handoffs, kills, grpo, eval, trl: 50 minutes more; trl needs TRL 1.16) need vLLM, Node.js, a built checkout, and in BATON_CHECK_MODEL a
# folder with SmolLM2-135M-Instruct; without these they are named as not run. The vLLM adapter by itself: vllm.sh.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$(mktemp -d)}
mkdir -p "$out"
wanted=" ${*:2} "
export PYTHONPATH="$here/../../python/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# DeepSpeed cannot read "9.0a", which some images set.
TORCH_CUDA_ARCH_LIST=$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 1
export TORCH_CUDA_ARCH_LIST
failed=()
missing=()
limit=300

check() {
  local name=$1
  shift
  [ "$wanted" = "  " ] || [[ $wanted == *" $name "* ]] || return 0
  echo "== $name"
  timeout "$limit" python3 "$@" --json "$out/$name.json" 2>&1 | tee "$out/$name.log" | grep -vE "\[INFO\]|Warning|warn"
  [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$name")
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

# Whole runs: the controller, DeepSpeed and vLLM together.
whole() {
  local name=$1
  [ "$wanted" = "  " ] || [[ $wanted == *" $name "* ]] || return 0
  if [ -z "${BATON_CHECK_MODEL:-}" ] || ! command -v node >/dev/null || ! python3 -c "import vllm" 2>/dev/null; then
    missing+=("$name")
    return 0
  fi
  limit=600 check "$name" "$2" "$out/$name" --model "$BATON_CHECK_MODEL" "${@:3}"
}
whole node node_check.py
whole handoffs handoffs_check.py
whole kills kill_check.py
whole grpo grpo_check.py
whole trl trl_check.py
# On sums; on problems of GSM8K too where its test.jsonl is in BATON_CHECK_DATA.
whole eval eval_check.py ${BATON_CHECK_DATA:+--data "$BATON_CHECK_DATA"}
if [ -z "${BATON_CHECK_DATA:-}" ] && { [ "$wanted" = "  " ] || [[ $wanted == *" eval "* ]]; }; then
  missing+=("eval of GSM8K")
fi

echo
grep -hE "checks passed|  failed:" "$out"/*.log
echo "results: $out"
[ ${#missing[@]} -eq 0 ] || echo "NOT RUN (vLLM, Node.js, BATON_CHECK_MODEL or BATON_CHECK_DATA is missing): ${missing[*]}"
if [ ${#failed[@]} -gt 0 ]; then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
