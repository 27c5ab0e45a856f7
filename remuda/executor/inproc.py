"""World size 1: the rank lives in this process.

On a CPU a plan runs inside `submit`. A device that computes beside its host has up to `max_launched` plans to do;
the host sees to the oldest in `poll`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from remuda.config.engine import EngineConfig
from remuda.engine.ports import StartReport
from remuda.executor.sizing import agree_on_pages
from remuda.executor.threads import threads_of_a_rank
from remuda.parallel.topology import topology_of
from remuda.protocol.errors import ConfigError
from remuda.protocol.progress import PhaseProgress
from remuda.protocol.step import StepPlan, StepResult

if TYPE_CHECKING:
    from remuda.worker.worker import Worker


class InprocExecutor:
    """torch is imported by start(), not before."""

    def __init__(self, config: EngineConfig) -> None:
        if config.parallel.world_size != 1:
            raise ConfigError(f"the in-process executor runs one rank, not {config.parallel.world_size}")
        self._config = config
        self._worker: Worker | None = None
        self._results: list[StepResult] = []

    def start(self, progress: Callable[[PhaseProgress], None]) -> StartReport:
        progress(PhaseProgress(0, "handshake", 0, 1, "importing torch"))
        import torch

        from remuda.parallel.groups import single_rank_groups
        from remuda.worker.faults import explained
        from remuda.worker.worker import Worker

        self._explained, self._inference_mode = explained, torch.inference_mode
        torch.set_num_threads(threads_of_a_rank(self._config))
        with explained(gpu=0):
            worker = Worker(self._config, topology_of(0, self._config.parallel), single_rank_groups(), progress)
            report = worker.load()
            pages = agree_on_pages(self._config, [report])
            progress(PhaseProgress(0, "memory", 1, 1))
            worker.allocate(pages)
            worker.self_test()
        progress(PhaseProgress(0, "self-test", 1, 1))
        self._worker = worker
        return StartReport(pages, [report], plans_in_flight=worker.runner.max_launched)

    def submit(self, plan: StepPlan) -> None:
        worker = self._worker
        assert worker is not None, "submit before start"
        with self._computing():
            while worker.launched and not worker.may_launch_ahead():
                self._finish_oldest(worker)
            worker.launch(worker.prepare(plan))
            self._finish_computed(worker)

    def poll(self, block: bool = False) -> list[StepResult]:
        if (worker := self._worker) is not None and worker.launched:
            with self._computing():
                self._finish_computed(worker)
                if block and not self._results:
                    self._finish_oldest(worker)
        results, self._results = self._results, []
        return results

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with self._explained(gpu=0), self._inference_mode():
            yield

    def _finish_computed(self, worker: Worker) -> None:
        while worker.launched and not worker.patience_s():
            self._finish_oldest(worker)

    def _finish_oldest(self, worker: Worker) -> None:
        result = worker.finish()
        assert result is not None
        self._results.append(result)

    def filenos(self) -> list[int]:
        return []

    def adopt_native(self) -> None:
        """Switch to the native kernels before the next plan."""
        if self._worker is not None:
            self._worker.adopt_native()

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None
