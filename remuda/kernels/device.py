"""What the launches of Triton kernels share: what the device has, counters, early launch."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton

_CPU_MULTIPROCESSORS = 16  # in Triton's interpreter: small, so that tests see several sizes of a grid


@functools.cache
def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return _CPU_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def has_large_blocks(device: torch.device) -> bool:
    """Whether a block may have 160 KB of shared memory, as on A100, H100 and their successors."""
    if device.type != "cuda":
        return True
    index = torch.cuda.current_device() if device.index is None else device.index
    return triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"] >= 160 << 10


@functools.cache
def counters(kernel: str, device: torch.device, size: int) -> torch.Tensor:
    """Zeros by which the blocks of `kernel` find out who is last; the last block leaves zeros again.

    One set per kernel and device: such a kernel must not run on two streams of a device at once. Call it once before a
    capture, so that the zeros are not made inside the graph.
    """
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    assert not capturing, f"run {kernel} once before capturing it"
    return torch.zeros(size, dtype=torch.int32, device=device)


def starts_early() -> bool:
    """Whether the current device runs kernels that start before their predecessors end: from Hopper on."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def early(pdl: bool) -> dict[str, Any]:
    """Launch options of a kernel that may start before its predecessor ends ("programmatic dependent launch").

    Such a kernel lets its successor start first of all, and waits before it reads or writes anything but constants. As
    all kernels in a row do so, whoever has waited comes after everything before it, and not its predecessor alone.
    """
    return {"launch_pdl": True} if pdl else {}


def power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()
