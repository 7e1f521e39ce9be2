#!/usr/bin/env bash
# The vLLM adapter on one real GPU: unpacks an archive with vLLM when one is given, runs test/gpu/vllm_check.py and
# leaves logs and figures in $OUT. usage: vllm.sh [ARCHIVE.tar.xz] [PART…]
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$PWD/vllm-out}
work=$(mktemp -d)
mkdir -p "$out"
if [[ ${1:-} == *.tar.xz ]]; then
  mkdir -p "$work/kit"
  tar xJf "$1" -C "$work/kit" || exit 1
  export PYTHONPATH="$work/kit/site"
  shift
fi
export TORCH_CUDA_ARCH_LIST=9.0 HF_HUB_OFFLINE=1 VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1
export FLASHINFER_DISABLE_VERSION_CHECK=1 NCCL_NVLS_ENABLE=0 TOKENIZERS_PARALLELISM=false
export VLLM_CACHE_ROOT="$work/cache"
nvidia-smi --query-gpu=name,driver_version,memory.used --format=csv,noheader
python3 -c 'import torch; print("torch", torch.__version__)'
timeout "${CHECK_SECONDS:-560}" python3 "$here/vllm_check.py" all "$work/check" "$@"
status=$?
tail -n +1 "$work"/check/*.json >"$out/figures.txt" 2>/dev/null
for log in "$work"/check/*.log; do
  { head -c 200000 "$log"; echo; echo ...; tail -c 200000 "$log"; } >"$out/$(basename "$log")"
done
grep -h -E '^(ok  |FAIL|     |failed:|baton:)' "$work"/check/*.log
rm -rf "$work"
exit $status
