"""The few things that a runner asks of a GPU beside torch's operations.

Everything else in this folder is plain torch, so that its tests run on any machine with a stand-in of this class.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from remuda.protocol.errors import RemudaError


class Moment(Protocol):
    """A point in the order of a device's work."""

    def wait(self, timeout_s: float) -> bool:
        """Until the device has got there; False if it has not in time."""
        ...

    def has_come(self) -> bool: ...


class Instant(Protocol):
    """A moment that is timed."""

    def clock_s(self) -> float:
        """When it was, on the host's monotonic clock; only once it has come."""
        ...


class Device(Protocol):
    """One device and the order of its work: what is given to it later happens later."""

    torch_device: torch.device
    captures: bool  # whether work can be recorded and replayed as a graph

    def send(self, array: np.ndarray) -> torch.Tensor:
        """A copy on the device; returns before it has been made, and `array` may change at once."""
        ...

    def fetch(self, x: torch.Tensor) -> torch.Tensor:
        """A copy on the host, to be read once a later `moment` has come."""
        ...

    def moment(self) -> Moment:
        """The end of all work given so far."""
        ...

    def instant(self) -> Instant:
        """The same, to be timed."""
        ...

    def free_bytes(self) -> tuple[int, int]:
        """(free, in all)."""
        ...

    def trim(self) -> None:
        """Give back memory that torch keeps and nothing uses; waits for all work."""
        ...

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Do `work`; the most bytes that it had beyond those that were in use before."""
        ...


class _Event:
    def __init__(self) -> None:
        self._event = torch.cuda.Event()
        self._event.record()

    def wait(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not self._event.query():  # as synchronize() does, but not forever
            if time.monotonic() > deadline:
                return False
        return True

    def has_come(self) -> bool:
        return self._event.query()


class _TimedEvent:
    """Events tell differences only: `origin` has come at `origin_s` of the host's clock."""

    def __init__(self, origin: torch.cuda.Event, origin_s: float) -> None:
        self._origin, self._origin_s = origin, origin_s
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record()

    def clock_s(self) -> float:
        return self._origin_s + self._origin.elapsed_time(self._event) * 1e-3


class Gpu:
    """A CUDA device. `index` counts the devices that CUDA_VISIBLE_DEVICES shows to this process."""

    captures = True

    def __init__(self, index: int) -> None:
        if index >= torch.cuda.device_count():
            raise RemudaError(
                f"this rank needs GPU {index}, but {torch.cuda.device_count()} are visible: use fewer ranks on this "
                "machine, or look at CUDA_VISIBLE_DEVICES and nvidia-smi"
            )
        torch.cuda.set_device(index)
        self.torch_device = torch.device("cuda", index)
        self.has_float8 = torch.cuda.get_device_capability(index) >= (8, 9)

    def send(self, array: np.ndarray) -> torch.Tensor:
        # The pinned copy comes from torch's pool, which keeps it until the device has read it.
        return torch.from_numpy(array).pin_memory().to(self.torch_device, non_blocking=True)

    def fetch(self, x: torch.Tensor) -> torch.Tensor:
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        return host.copy_(x, non_blocking=True)

    def moment(self) -> Moment:
        return _Event()

    def instant(self) -> Instant:
        return _TimedEvent(*self._origin)

    @cached_property
    def _origin(self) -> tuple[torch.cuda.Event, float]:
        event = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        event.record()
        event.synchronize()
        return event, time.monotonic()

    def free_bytes(self) -> tuple[int, int]:
        return torch.cuda.mem_get_info(self.torch_device)

    def trim(self) -> None:
        torch.cuda.synchronize(self.torch_device)
        torch.cuda.empty_cache()

    def peak_bytes(self, work: Callable[[], object]) -> int:
        before = torch.cuda.memory_allocated(self.torch_device)
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        work()
        torch.cuda.synchronize(self.torch_device)
        return torch.cuda.max_memory_allocated(self.torch_device) - before
