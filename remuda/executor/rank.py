"""The process of one rank: start-up phases, then plans until told to stop. Runs in a fork of the launcher."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import select
import signal
import socket
import traceback
from collections import deque
from dataclasses import dataclass

import torch
from setproctitle import setproctitle

from remuda import __version__
from remuda.config.engine import EngineConfig
from remuda.executor.address import Address
from remuda.executor.threads import threads_of_a_rank
from remuda.parallel.groups import Groups, MeshError, Rendezvous, connect_groups
from remuda.parallel.topology import Topology, topology_of
from remuda.protocol.errors import DeviceFailed, RemudaError
from remuda.protocol.progress import PhaseProgress
from remuda.protocol.step import (
    AdoptNative,
    AllocateCache,
    Hello,
    RankFailed,
    RankReady,
    StepPlan,
    StopRank,
)
from remuda.protocol.wire import Channel, WireError, rank_side
from remuda.worker.devices import gpu_index
from remuda.worker.faults import explained
from remuda.worker.kv_pool import compute_dtype
from remuda.worker.worker import Step, Worker

_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
_SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}.get(platform.machine(), -1)
_SLICE_NS = 100_000  # the shortest there is
_STOP_TOGETHER_S = 2.0


@dataclass(frozen=True)
class RankPlace:
    """What a rank must know beside the configuration."""

    rank: int
    node: int
    engine: Address
    rendezvous: Rendezvous


class RankProcess:
    """`run` returns the exit code: 0 after StopRank, 1 after a failure that was reported, 3 if the engine is gone."""

    def __init__(self, config: EngineConfig, place: RankPlace) -> None:
        self._config = config
        self._place = place
        self._phase = "handshake"
        self._topology: Topology = topology_of(place.rank, config.parallel)

    def run(self) -> int:
        # What holds the device stays referenced here until the process exits: the destructors of a broken device's
        # graphs and communicators may wait for it forever.
        topology = self._topology
        setproctitle(f"remuda: rank {topology.rank} tp{topology.tp_rank} pp{topology.stage}")
        try:
            self._channel: Channel = rank_side(self._place.engine.connect(self._config.parallel.distributed_timeout_s))
            self._greet()
        except RemudaError:
            return 3
        try:
            with explained(gpu_index(topology, self._config)):
                worker = self._start()
                self._serve(worker)
                with contextlib.suppress(MeshError):  # a neighbour may still wait for what is on its way from us
                    worker.groups.part(_STOP_TOGETHER_S)
                worker.close()
        except WireError:  # the engine is gone; so must we be
            return 3
        except Exception as error:
            return self._report(error)
        return 0

    def _greet(self) -> None:
        self._channel.send(
            Hello(
                rank=self._place.rank,
                node=self._place.node,
                pid=os.getpid(),
                host=socket.gethostname(),
                version=__version__,
                config_hash=self._config.digest(),
            )
        )

    def _enter(self, phase: str, detail: str = "") -> None:
        self._phase = phase
        self._progress(PhaseProgress(self._place.rank, phase, 0, 1, detail))

    def _progress(self, progress: PhaseProgress) -> None:
        self._channel.send(progress)

    def _start(self) -> Worker:
        config = self._config
        torch.set_num_threads(threads_of_a_rank(config))
        self._enter("mesh")
        self._groups = self._connect()
        worker = self._worker = Worker(config, self._topology, self._groups, self._progress)
        self._enter("weights")
        self._channel.send(worker.load())
        self._enter("memory")
        message = self._channel.receive()
        if isinstance(message, StopRank):
            raise WireError("stopped during start-up")
        assert isinstance(message, AllocateCache), message
        worker.allocate(message.pages)
        self._enter("self-test")
        worker.self_test()
        self._channel.send(RankReady(self._place.rank))
        self._phase = "serving"
        return worker

    def _connect(self) -> Groups:
        model = self._config.model
        device = torch.device(self._config.device)
        if device.type == "cuda":  # NCCL takes the current device
            torch.cuda.set_device(gpu_index(self._topology, self._config))
        return connect_groups(self._topology, self._place.rendezvous, model.hidden_size, compute_dtype(model), device)

    @torch.inference_mode()  # entered once, not at every part of a step
    def _serve(self, worker: Worker) -> None:
        """Plans in order. Whatever has arrived is announced before the next plan runs, so that receives wait early."""
        backlog: deque[object] = deque()
        while True:
            self._take_in(worker, backlog, 0.0 if backlog else None)
            message = backlog.popleft()
            if isinstance(message, StepPlan):
                self._run(worker, worker.prepare(message), backlog)
            elif isinstance(message, AdoptNative):
                worker.adopt_native()
            elif isinstance(message, StopRank):
                return

    def _run(self, worker: Worker, first: Step, backlog: deque[object]) -> None:
        """See a step to its end, and those that come right behind it.

        While the device computes, the host prepares the next step, and launches it where that may be.
        """
        worker.launch(first)
        prepared: Step | None = None
        while worker.launched:
            prepared = prepared or self._prepare_meanwhile(worker, backlog)
            if prepared is not None and worker.may_launch_ahead():
                worker.launch(prepared)
                prepared = None
                continue
            result = worker.finish()
            if prepared is not None and (not worker.launched or worker.may_launch_ahead()):
                worker.launch(prepared)
                prepared = None
            if result is not None:
                self._channel.send(result)

    def _prepare_meanwhile(self, worker: Worker, backlog: deque[object]) -> Step | None:
        """Look for the next plan until the oldest launched step is as good as done; on a CPU it is.

        The ranks of a host end their steps at about the same time. What can wait for the middle of a step must not take
        a core from a rank that has something to pass on: hence the rest.
        """
        worker.rest()
        while not backlog and (patience_s := worker.patience_s()) > 0.0:
            self._take_in(worker, backlog, patience_s)
        if backlog and isinstance(plan := backlog[0], StepPlan) and worker.may_prepare(plan):
            backlog.popleft()
            return worker.prepare(plan)
        return None

    def _take_in(self, worker: Worker, backlog: deque[object], patience_s: float | None) -> None:
        """Read what is there; wait up to `patience_s` for something (None: until there is)."""
        channel = self._channel
        while select.select([channel.sock], [], [], patience_s)[0]:
            channel.fill()
            for message in channel.pop():
                if isinstance(message, StepPlan):
                    worker.announce(message)
                backlog.append(message)
            if backlog:
                patience_s = 0.0

    def _report(self, error: Exception) -> int:
        rank, node, phase = self._place.rank, self._place.node, self._phase
        if isinstance(error, RemudaError):
            trace = traceback.format_exc() if isinstance(error, DeviceFailed) else ""  # it names the kernel, at best
            failed = RankFailed(rank, node, phase, error.message, trace, code=error.code)
        else:
            failed = RankFailed(rank, node, phase, f"{type(error).__name__}: {error}", traceback.format_exc())
        try:
            self._channel.send(failed)
        except WireError:
            return 3
        return 1


class _SchedAttr(ctypes.Structure):
    """struct sched_attr of sched_setattr(2), as far as version 1 of it goes."""

    _fields_ = [
        ("size", ctypes.c_uint32), ("policy", ctypes.c_uint32), ("flags", ctypes.c_uint64), ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32), ("runtime_ns", ctypes.c_uint64), ("deadline_ns", ctypes.c_uint64),
        ("period_ns", ctypes.c_uint64),
    ]  # fmt: skip


def _ask_for_short_slices(libc: ctypes.CDLL) -> None:
    """Run soon after each wake-up, for less time at once (sched_setattr(2); Linux before 6.12 ignores it).

    Where ranks share cores, the one whose input has come must not wait for the end of another's slice. A policy that an
    operator chose (chrt) stays.
    """
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    attributes = _SchedAttr(size=ctypes.sizeof(_SchedAttr), nice=os.nice(0), runtime_ns=_SLICE_NS)
    libc.syscall(_SYS_SCHED_SETATTR, 0, ctypes.byref(attributes), 0)


def become_child_of(parent_pid: int) -> None:
    """Die when the parent does, and leave Ctrl-C to the engine. Call right after fork."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_TIMERSLACK, 1)  # short waits (simulation, spinning collectives) end when asked to
    _ask_for_short_slices(libc)
    if os.getppid() != parent_pid:  # it died before prctl
        os._exit(3)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
