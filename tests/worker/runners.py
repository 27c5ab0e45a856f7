"""Runners over the tiny model, workers on them, and the orders in which a rank may run its plans."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from remuda.config.engine import EngineConfig
from remuda.layers.base import BuildContext
from remuda.models.interfaces import Model
from remuda.parallel.collectives import SingleRank, Switchable
from remuda.parallel.groups import Groups, single_rank_groups
from remuda.parallel.topology import topology_of
from remuda.protocol.step import StepPlan, StepResult
from remuda.worker import simulated
from remuda.worker.cpu.runner import CpuRunner
from remuda.worker.simulated import SimulatedRunner
from remuda.worker.worker import Worker
from tests.worker.async_device import AsyncRunner, QueueDeviceLink
from tests.worker.fakes import FakeModel, QueueLink

Order = Callable[[Worker, list[StepPlan]], Iterator[StepResult | None]]


class OnCpu(CpuRunner):
    link = QueueLink

    def _build(self) -> Model:
        return FakeModel(BuildContext(self._config.model, self._topology, self._tp, "cpu"))


class BesideHost(SimulatedRunner):
    link = QueueLink

    def _build(self) -> Model:
        model = FakeModel(BuildContext(self._config.model, self._topology, self._tp, "cpu"))
        model.busy_until_s = 0.0  # type: ignore[attr-defined]
        return model

    def close(self) -> None:
        return


class OnDevice(AsyncRunner):
    link = QueueDeviceLink


class NeverDoneWhenAsked(simulated._Launched):
    """But always when waited for."""

    def remaining_s(self) -> float:
        return 1.0

    def wait(self) -> None:
        return


def make_workers(config: EngineConfig, runner: Any) -> list[Worker]:
    """One worker per stage; several are joined by queues and must each run in a thread of their own."""
    stages = config.parallel.pipeline_parallel_size
    tokens: queue.Queue = queue.Queue()
    boundaries: list[queue.Queue | None] = [None, *(queue.Queue() for _ in range(stages - 1)), None]
    workers = []
    for stage in range(stages):
        groups = single_rank_groups()
        if stages > 1:
            groups = Groups(Switchable(SingleRank()), runner.link(boundaries[stage], boundaries[stage + 1], tokens))
        worker = Worker(config, topology_of(stage, config.parallel), groups)
        worker.load()
        worker.allocate(config.cache.num_pages_override or 0)
        workers.append(worker)
    return workers


def one_by_one(worker: Worker, plans: list[StepPlan], announce_ahead: int = 3) -> Iterator[StepResult | None]:
    """Every plan, as far ahead as the data lets it: the engine has seen no result meanwhile."""
    announced = 0
    for index, plan in enumerate(plans):
        while announced < min(len(plans), index + announce_ahead):
            worker.announce(plans[announced])
            announced += 1
        yield worker.execute(plan)


@torch.inference_mode()
def overlapped(worker: Worker, plans: list[StepPlan]) -> Iterator[StepResult | None]:
    """Each plan is prepared, and launched, as soon as the runner lets it."""
    waiting = deque(plans)
    for plan in plans:
        worker.announce(plan)
    prepared = None
    while waiting or prepared or worker.launched:
        if prepared is None and waiting and (not worker.launched or worker.may_prepare(waiting[0])):
            prepared = worker.prepare(waiting.popleft())
        if prepared is not None and (not worker.launched or worker.may_launch_ahead()):
            worker.launch(prepared)
            prepared = None
        else:
            yield worker.finish()


def run_all(workers: list[Worker], plans: list[StepPlan], order: Order = one_by_one) -> list[StepResult]:
    """Every stage runs every plan in a thread of its own."""
    results: list[StepResult] = []
    errors: list[BaseException] = []

    def stage(worker: Worker) -> None:
        try:
            results.extend(result for result in order(worker, plans) if result is not None)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=stage, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a stage hangs"
    return results
