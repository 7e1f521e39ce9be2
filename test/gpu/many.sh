#!/bin/bash
# Everything of Baton that needs several GPUs, for the 2, 4 or 8 that are there: one command, or several that name parts.
#
#     test/gpu/many.sh OUT [PART ...] [--work FOLDER] [--seconds LIMIT] [--graphs HOW] [--list]
#     test/gpu/many.sh OUT [PART ...] --simulated N      the same parts on N stand-in GPUs, with tiny models
#
# OUT gets many.md (tables), many.json, many.svg and logs.tar.gz. Parts whose times are taken run alone, the others side by
# side. Commands with the same --work are joined. Needs what run.sh needs for whole runs: python3 (or BATON_PYTHON) with
# torch, deepspeed, accelerate and vLLM, Node.js, a built checkout, and in BATON_CHECK_MODEL a folder with
# SmolLM2-135M-Instruct. Exit code 1 when a check fails; a goal that is missed is a row that says so.
set -u
here=$(cd "$(dirname "$0")" && pwd)
python=${BATON_PYTHON:-python3}
export PYTHONPATH="$here/../../python/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# NVLink multicast can take the GPUs of a shared host out of service.
export NCCL_NVLS_ENABLE=0 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false VLLM_NO_USAGE_STATS=1
case " $* " in
  *" --simulated"* | *" --list "*) ;;
  *)
    # DeepSpeed cannot read "9.0a", which some images set. Its FusedAdam is compiled at first use, which takes a minute;
    # meanwhile parts run that do not use it.
    TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 1
    export TORCH_CUDA_ARCH_LIST
    ("$python" -c "from deepspeed.ops.op_builder import FusedAdamBuilder; FusedAdamBuilder().load()" >/dev/null 2>&1 ||
      echo "DeepSpeed's FusedAdam could not be built: parts under ZeRO-3 will fail") &
    ;;
esac
exec "$python" "$here/many.py" "$@"
