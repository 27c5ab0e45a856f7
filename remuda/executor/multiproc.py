"""A process per rank, on this host or several. The engine side of it: start, submit, poll, shut down. No torch."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from remuda import __version__
from remuda.config.engine import EngineConfig
from remuda.engine.ports import StartReport
from remuda.executor import supervision
from remuda.executor.address import Listener, listen_tcp
from remuda.executor.peers import Lost, Peer, Peers
from remuda.executor.sizing import agree_on_pages
from remuda.executor.supervision import Evidence
from remuda.parallel.topology import node_of
from remuda.protocol.errors import RemudaError, ReplicaDied
from remuda.protocol.nodes import NodeFailed, NodeHello, NodeRefused, NodeWelcome, RankExited, StopNode
from remuda.protocol.progress import PhaseProgress
from remuda.protocol.step import (
    AdoptNative,
    AllocateCache,
    Hello,
    MemoryReport,
    RankFailed,
    RankReady,
    StepPlan,
    StepResult,
    StopRank,
)

_STOP_GRACE_S = 2.0
_EVIDENCE_S = 1.0  # after a first sign of trouble, wait at most so long for one that explains it


class MultiprocExecutor:
    """See `engine/ports.py`. Every rank and launcher has its own connection; nothing here blocks after `start`."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._digest = config.digest()
        self._launcher: subprocess.Popen[bytes] | None = None
        self._peers: Peers | None = None
        self._died: ReplicaDied | None = None

    # ------------------------------------------------------------------------------------------------ start-up

    def start(self, progress: Callable[[PhaseProgress], None]) -> StartReport:
        try:
            return _StartUp(self, progress).run()
        except BaseException:
            self._end(grace_s=0.0)
            raise

    def listen(self) -> Peers:
        """Open for business and start this node's launcher; the launchers of other nodes come by themselves."""
        parallel = self._config.parallel
        across = parallel.nnodes > 1
        host = parallel.master_addr if across else "127.0.0.1"
        listener = Listener((host, parallel.master_port) if across else None)
        self._peers = Peers(listener)
        with listen_tcp(host, parallel.master_port + 1 if across else 0) as store:
            self.store_address: tuple[str, int] = (host, store.getsockname()[1])
            command = [sys.executable, "-m", "remuda.executor.launcher", listener.address.text, "0"]
            self._launcher = subprocess.Popen(
                [*command, str(store.fileno())], pass_fds=[store.fileno()], stdin=subprocess.DEVNULL
            )
        return self._peers

    def launcher_exit_code(self) -> int | None:
        return self._launcher.poll() if self._launcher is not None else None

    # ------------------------------------------------------------------------------------------------ steps

    def submit(self, plan: StepPlan) -> None:
        self._to_ranks(plan)

    def adopt_native(self) -> None:
        """Every rank switches to the native kernels before the next plan."""
        self._to_ranks(AdoptNative())

    def poll(self, block: bool = False) -> list[StepResult]:
        if self._died is not None:
            raise self._died
        assert self._peers is not None, "poll before start"
        results: list[StepResult] = []
        trouble: list[Evidence] = []
        for peer, message in self._peers.poll():
            if isinstance(message, StepResult):
                results.append(message)
            elif (evidence := _evidence(peer, message)) is not None:
                trouble.append(evidence)
        if trouble:
            self._bury(trouble)
        return results

    def filenos(self) -> list[int]:
        return [self._peers.fileno] if self._peers is not None else []

    def shutdown(self) -> None:
        self._end(_STOP_GRACE_S)

    def _to_ranks(self, message: StepPlan | AdoptNative | AllocateCache) -> None:
        assert self._peers is not None, "not started"
        ranks = self._peers.ranks
        frame = ranks[0].channel.encode(message)
        for peer in ranks.values():
            self._peers.send(peer, frame)

    # ------------------------------------------------------------------------------------------------ the end

    def _bury(self, seen: list[Evidence]) -> None:
        """Find the cause, end what is left, and raise ReplicaDied."""
        assert self._peers is not None
        deadline = time.monotonic() + _EVIDENCE_S
        while supervision.cause(seen).severity >= supervision.FAILED and (left_s := deadline - time.monotonic()) > 0:
            for peer, message in self._peers.poll(left_s):
                if (evidence := _evidence(peer, message)) is not None:
                    seen.append(evidence)
        self._died = supervision.cause(seen).as_error()
        self._end(grace_s=0.0)
        raise self._died

    def _end(self, grace_s: float) -> None:
        """Stop launchers and ranks; return when no process of this node is left."""
        peers, launcher = self._peers, self._launcher
        self._peers = self._launcher = None
        if peers is not None:
            for peer in peers.nodes.values():  # first: from then on the end of a rank is no accident
                peers.send(peer, peer.channel.encode(StopNode(grace_s)))
            if grace_s:
                for peer in peers.ranks.values():
                    peers.send(peer, peer.channel.encode(StopRank()))
        if launcher is not None:
            try:
                launcher.wait(timeout=grace_s + 2.0 if peers is not None and 0 in peers.nodes else 0.0)
            except subprocess.TimeoutExpired:
                launcher.kill()  # its ranks die with it
                launcher.wait()
        if peers is not None:
            peers.close()


def _evidence(peer: Peer, message: Any) -> Evidence | None:
    """What a message says about the health of the replica; None if it is no bad news."""
    if isinstance(message, RankExited):
        if message.signal:
            return supervision.rank_killed(message.node, message.rank, message.signal)
        return supervision.rank_exited(message.node, message.rank, message.exit_code)
    if isinstance(message, RankFailed):
        return supervision.rank_failed(message)
    if isinstance(message, NodeFailed):
        return supervision.node_lost(message.node, message.message)
    if isinstance(message, Lost):
        node = peer.node or 0
        if peer.rank is not None:
            return supervision.rank_disconnected(node, peer.rank, message.reason)
        return supervision.node_lost(node, message.reason)
    return None


class _StartUp:
    """The phases up to ready, as one conversation with every rank. `run` raises what stopped it."""

    def __init__(self, executor: MultiprocExecutor, progress: Callable[[PhaseProgress], None]) -> None:
        self._executor = executor
        self._config = executor._config
        self._progress = progress
        self._phases: dict[int, str] = {}
        self._memory: dict[int, MemoryReport] = {}
        self._ready: set[int] = set()
        self._failures: list[RankFailed] = []

    def run(self) -> StartReport:
        parallel = self._config.parallel
        ranks = range(parallel.world_size)
        self._deadline = time.monotonic() + self._config.startup_timeout_s
        self._peers = self._executor.listen()
        join_s = parallel.distributed_timeout_s
        self._wait(lambda: [n for n in range(parallel.nnodes) if n not in self._peers.nodes], "launcher", join_s)
        self._wait(lambda: [r for r in ranks if r not in self._peers.ranks], "greeting")
        self._peers.stop_listening()
        self._wait(lambda: [r for r in ranks if r not in self._memory], "memory report")
        reports = [self._memory[rank] for rank in ranks]
        pages = agree_on_pages(self._config, reports)
        self._executor._to_ranks(AllocateCache(pages))
        self._wait(lambda: [r for r in ranks if r not in self._ready], "self-test")
        return StartReport(pages, reports)

    def _wait(self, missing: Callable[[], list[int]], what: str, timeout_s: float | None = None) -> None:
        """Handle messages until nothing is missing. Raises RemudaError naming node, rank and phase."""
        started = time.monotonic()
        deadline = self._deadline if timeout_s is None else min(self._deadline, started + timeout_s)
        while still_missing := missing():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise RemudaError(self._timed_out(what, still_missing, time.monotonic() - started))
            for peer, message in self._peers.poll(min(left_s, 0.5)):
                self._handle(peer, message)
            if self._executor.launcher_exit_code() is not None:
                self._fail(supervision.node_lost(0, f"its launcher ended ({self._executor.launcher_exit_code()})"))

    def _timed_out(self, what: str, missing: list[int], waited_s: float) -> str:
        if what == "launcher":
            parallel = self._config.parallel
            nodes = ", ".join(str(node) for node in missing)
            return (
                f"node {nodes} of {parallel.nnodes} did not join within {waited_s:.0f} s: run the same command there, "
                f"with --node-rank, --master-addr {parallel.master_addr} and --master-port {parallel.master_port}"
            )
        return supervision.describe_timeout(what, self._phases, missing, waited_s)

    def _handle(self, peer: Peer, message: Any) -> None:
        if isinstance(message, PhaseProgress):
            self._phases[message.rank] = message.phase
            self._progress(message)
        elif isinstance(message, NodeHello):
            self._welcome(peer, message)
        elif isinstance(message, Hello):
            self._check(message)
        elif isinstance(message, MemoryReport):
            self._memory[message.rank] = message
        elif isinstance(message, RankReady):
            self._ready.add(message.rank)
            self._progress(PhaseProgress(message.rank, "self-test", 1, 1))
        elif isinstance(message, RankFailed):
            self._failures.append(message)
            self._fail(supervision.rank_failed(message))
        elif (evidence := _evidence(peer, message)) is not None:
            self._fail(evidence)

    def _welcome(self, peer: Peer, hello: NodeHello) -> None:
        reason = ""
        if hello.version != __version__:
            reason = f"node {hello.node} ({hello.host}) runs remuda {hello.version}, node 0 runs {__version__}"
        elif not 0 <= hello.node < self._config.parallel.nnodes:
            reason = f"--node-rank {hello.node} is not below --nnodes {self._config.parallel.nnodes}"
        if reason:
            self._peers.send(peer, peer.channel.encode(NodeRefused(reason)))
            raise RemudaError(reason)
        host, port = self._executor.store_address
        welcome = NodeWelcome(msgspec.msgpack.encode(self._config), host, port)
        self._peers.send(peer, peer.channel.encode(welcome))

    def _check(self, hello: Hello) -> None:
        where = f"rank {hello.rank} on node {hello.node} ({hello.host})"
        if not 0 <= hello.rank < self._config.parallel.world_size or hello.node != node_of(
            hello.rank, self._config.parallel
        ):
            raise RemudaError(f"{where} is not part of this replica")
        if (hello.version, hello.config_hash) != (__version__, self._executor._digest):
            raise RemudaError(
                f"{where} runs remuda {hello.version} with configuration {hello.config_hash}, the engine {__version__} "
                f"with {self._executor._digest}. Install the same version on every node"
            )
        self._phases[hello.rank] = "handshake"
        self._progress(PhaseProgress(hello.rank, "handshake", 1, 1, f"{hello.host} pid {hello.pid}"))

    def _fail(self, first: Evidence) -> None:
        """Wait for what explains the first sign, then raise."""
        seen = [first]
        deadline = time.monotonic() + _EVIDENCE_S
        while (left_s := deadline - time.monotonic()) > 0:
            for peer, message in self._peers.poll(left_s):
                if isinstance(message, RankFailed):
                    self._failures.append(message)
                if (evidence := _evidence(peer, message)) is not None:
                    seen.append(evidence)
            if supervision.cause(seen).severity < supervision.FAILED:
                break
        worst = supervision.cause(seen)
        if worst.severity >= supervision.FAILED and self._failures:
            raise RemudaError(supervision.describe_startup_failures(self._failures))
        phase = self._phases.get(worst.rank, "handshake") if worst.rank is not None else "handshake"
        raise RemudaError(f"{worst.as_error().message} during start-up (phase {phase})")
