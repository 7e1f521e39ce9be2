"""What a kernel did that CUDA ends a process for, told by the texts of torch and of the driver.

CUDA reports it at whatever call comes next, and every call after that fails too. On the stand-in GPUs the same mistake
is a segmentation fault.
"""

from __future__ import annotations

AWAY = (
    "Training state (parameters, gradients, optimizer) is away inside of `with session.rollout()`: copy the tensors "
    "that the block needs before it, with .clone() outside of the training memory."
)
_FIND = "CUDA_LAUNCH_BLOCKING=1 in the environment makes the traceback name the line."

#: Code, and the texts that mean it: torch's, then the driver's names for the same results.
_KINDS = (
    (
        "CUDA_ILLEGAL_ACCESS",
        ("illegal memory access", "misaligned address", "CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_MISALIGNED_ADDRESS"),
    ),
    ("CUDA_DEVICE_ASSERT", ("device-side assert", "CUDA_ERROR_ASSERT", "CUDA_ERROR_710")),
)


def kind_of(text: str) -> str | None:
    """The code for the text of an exception; None: it is about something else."""
    for code, signs in _KINDS:
        if any(sign in text for sign in signs):
            return code
    return None


def failure_of(code: str, text: str, doing: str, *, away: bool) -> dict[str, str]:
    """The fields of the error. `away`: training state was, or had just been, given back for a rollout."""
    # The rest of torch's text is general advice.
    found = text.strip().partition("\n")[0]
    if code == "CUDA_ILLEGAL_ACCESS":
        expected = "kernels that touch only memory which is there"
        advice = [AWAY] if away else ["A kernel used a tensor whose memory is gone, or went beyond its end."]
    else:
        expected = "kernels whose own checks hold"
        advice = ["An index is out of range, such as a token beyond the vocabulary.", *([AWAY] if away else [])]
    return {
        "code": code,
        "message": f"{doing} failed: {found}",
        "expected": expected,
        "found": found + (", while the training state was away for the rollout" if away else ""),
        "action": " ".join([*advice, _FIND]),
    }
