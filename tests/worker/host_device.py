"""The processor in the place of a GPU (`worker/cuda/device.py`): work is done as soon as it is given."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from remuda.config.engine import EngineConfig
from remuda.layers.base import BuildContext
from remuda.parallel.groups import Groups
from remuda.parallel.topology import Topology
from remuda.weights.loader import LoadReport, Progress
from remuda.worker.cuda.runner import CudaRunner
from tests.worker.async_device import QueueDeviceLink
from tests.worker.fakes import FakeModel


class Now:
    """A moment that has come."""

    def wait(self, timeout_s: float) -> bool:
        return True

    def has_come(self) -> bool:
        return True


class TimedNow:
    def __init__(self) -> None:
        self._clock_s = time.monotonic()

    def clock_s(self) -> float:
        return self._clock_s


class HostDevice:
    torch_device = torch.device("cpu")
    captures = False

    def send(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.copy())

    def fetch(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    def moment(self) -> Now:
        return Now()

    def instant(self) -> TimedNow:
        return TimedNow()

    def free_bytes(self) -> tuple[int, int]:
        return 8 << 30, 8 << 30

    def trim(self) -> None:
        return

    def peak_bytes(self, work: Callable[[], object]) -> int:
        work()
        return 1 << 20


class AtOnce:
    """The stream of a `QueueDeviceLink` that puts nothing off."""

    def enqueue(self, work: Callable[[], object]) -> None:
        work()


class OnStandIn(CudaRunner):
    """The runner for GPUs, with the stand-in."""

    link = QueueDeviceLink

    def __init__(self, config: EngineConfig, topology: Topology, groups: Groups) -> None:
        if groups.link is not None:
            groups.link.stream = AtOnce()  # type: ignore[union-attr]
        super().__init__(config, topology, groups, HostDevice())

    def load(self, progress: Progress) -> LoadReport:
        self.model = FakeModel(BuildContext(self._config.model, self._topology, self._tp, "cpu"))
        return LoadReport(0, 0)
