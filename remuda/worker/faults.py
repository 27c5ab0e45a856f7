"""What torch and Triton raise when a GPU fails, as errors that say which GPU, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from remuda.protocol.errors import DeviceFailed, DeviceOutOfMemory, PeerLost

# Only the first is always of a type of its own; cuBLAS and Triton raise plain RuntimeErrors.
_SIGNS_OF_A_BROKEN_DEVICE = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]", "CUBLAS_STATUS_", "cuBLAS error")
_SIGNS_OF_NO_MEMORY = ("CUDA error: out of memory", "Triton Error [CUDA]: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextmanager
def explained(gpu: int) -> Iterator[None]:
    """Errors of the GPU with this index among the visible ones leave as RemudaErrors; all others pass.

    Raises:
        DeviceOutOfMemory, DeviceFailed: this GPU is the cause.
        PeerLost: NCCL noticed that another rank is gone or silent.
    """
    try:
        yield
    except Exception as error:
        if (explanation := explain(error, gpu)) is None:
            raise
        raise explanation from error


def explain(error: BaseException, gpu: int) -> DeviceOutOfMemory | DeviceFailed | PeerLost | None:
    """None if `error` is not about a GPU. A failed collective is explained by what broke it, if that was this GPU."""
    text = str(error).strip()
    first_line = text.split("\n", 1)[0]
    if isinstance(error, torch.OutOfMemoryError) or text.startswith(_SIGNS_OF_NO_MEMORY):
        told = ". ".join(first_line.split(". ")[:3]).rstrip(".")  # what it wanted and what was free
        return DeviceOutOfMemory(
            f"GPU {gpu} has no memory left: {told}. Lower --gpu-memory-utilization, --max-num-batched-tokens or "
            "--max-num-seqs, or use more ranks; nvidia-smi shows what else uses the GPU"
        )
    if isinstance(error, torch.AcceleratorError) or text.startswith(_SIGNS_OF_A_BROKEN_DEVICE):
        return DeviceFailed(
            f"GPU {gpu} failed: {first_line}. dmesg (Xid) and nvidia-smi tell whether the GPU is broken or lost; if it "
            "is neither, a kernel is wrong: CUDA_LAUNCH_BLOCKING=1 with --enforce-eager names it"
        )
    if isinstance(error, torch.distributed.DistBackendError):
        return PeerLost(f"lost another rank's GPU: {first_line}")
    if isinstance(error, PeerLost) and isinstance(error.__cause__, RuntimeError):
        cause = explain(error.__cause__, gpu)
        return None if isinstance(cause, PeerLost) else cause
    return None
