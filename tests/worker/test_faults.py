"""What torch says of a broken GPU becomes an error with a code, of the right rank."""

from __future__ import annotations

import pytest
import torch

from remuda.protocol.errors import CheckpointError, DeviceFailed, DeviceOutOfMemory, PeerLost
from remuda.worker.faults import explained

ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported at some "
    "other API call, so the stacktrace below might be incorrect."
)
NO_MEMORY = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 3.94 GiB is "
    "free. Including non-PyTorch memory, this process has 75.15 GiB memory in use. Of the allocated memory ..."
)


def lost(cause: Exception) -> PeerLost:
    error = PeerLost("lost a tensor-parallel peer: ...")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("raised", "kind", "told"),
    [
        (torch.OutOfMemoryError(NO_MEMORY), DeviceOutOfMemory, "3.94 GiB is free. Lower --gpu-memory-utilization"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel ..."), DeviceOutOfMemory, "GPU 3 has no memory left"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), DeviceOutOfMemory, "GPU 3 has no memory left"),
        (torch.AcceleratorError(ILLEGAL), DeviceFailed, "illegal memory access was encountered. dmesg"),
        (RuntimeError("Triton Error [CUDA]: an illegal instruction was encountered"), DeviceFailed, "GPU 3 failed"),
        (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling ..."), DeviceFailed, "GPU 3 failed: CUBLAS"),
        (torch.distributed.DistBackendError("NCCL error in: NCCLUtils.cpp:94, remote"), PeerLost, "another rank's GPU"),
        (lost(torch.AcceleratorError(ILLEGAL)), DeviceFailed, "illegal memory access"),  # met by a collective
    ],
)
def test_a_fault_of_a_gpu_is_told_by_type(raised: Exception, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind) as caught, explained(gpu=3):
        raise raised
    assert type(caught.value) is kind and told in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize(
    "raised",
    [
        RuntimeError("shapes differ"),
        CheckpointError("no such file"),
        lost(RuntimeError("connection reset by peer")),
        lost(torch.distributed.DistBackendError("NCCL error")),
        PeerLost("waited in vain"),
    ],
)
def test_everything_else_passes(raised: Exception) -> None:
    with pytest.raises(type(raised)) as caught, explained(gpu=0):
        raise raised
    assert caught.value is raised
