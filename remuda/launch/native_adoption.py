"""Answer with torch's operations at once; switch to the native kernels when their build is ready."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

from remuda.engine.ports import StartReport
from remuda.executor.inproc import InprocExecutor
from remuda.executor.multiproc import MultiprocExecutor
from remuda.kernels.native.build import NativeUnavailable, build, build_in_background
from remuda.protocol.progress import PhaseProgress
from remuda.protocol.step import StepPlan, StepResult

_POLL_S = 0.1


class AdoptsNative:
    """An executor whose ranks change over between two plans, all at the same one.

    While the compiler runs, a thread waits for it and then makes a descriptor readable, so that the change happens in
    an idle moment if there is one, and with the next plan otherwise.
    """

    def __init__(self, inner: InprocExecutor | MultiprocExecutor, *, required: bool) -> None:
        self._inner = inner
        self._required = required
        self._built = threading.Event()
        self._signal = -1  # readable when the build is ready; -1: nothing to wait for

    def start(self, progress: Callable[[PhaseProgress], None]) -> StartReport:
        if self._required:
            build()
        report = self._inner.start(progress)
        try:
            compiling = build_in_background()
            if compiling.poll() is not None:
                self._inner.adopt_native()
                return report
        except NativeUnavailable:
            if self._required:
                raise
            return report
        self._signal = os.eventfd(0)
        threading.Thread(target=self._wait_for, args=(compiling.poll,), name="native build", daemon=True).start()
        return report

    def submit(self, plan: StepPlan) -> None:
        if self._signal >= 0 and self._built.is_set():
            self._adopt()
        self._inner.submit(plan)

    def poll(self, block: bool = False) -> list[StepResult]:
        if self._signal >= 0 and self._built.is_set():
            self._adopt()
        return self._inner.poll(block)

    def filenos(self) -> list[int]:
        inner = self._inner.filenos()
        return [*inner, self._signal] if inner and self._signal >= 0 else inner

    def shutdown(self) -> None:
        self._inner.shutdown()

    def _adopt(self) -> None:
        os.close(self._signal)  # also takes it out of every poller
        self._signal = -1
        self._inner.adopt_native()

    def _wait_for(self, ready: Callable[[], object]) -> None:
        try:
            while ready() is None:
                time.sleep(_POLL_S)
        except NativeUnavailable as error:
            print(f"remuda: engine: {error.message}; torch's operations go on serving", file=sys.stderr, flush=True)
            return
        os.eventfd_write(self._signal, 1)
        self._built.set()  # only now may the descriptor be closed
