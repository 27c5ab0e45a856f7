"""The one process per node that imports torch, forks the node's ranks and watches them.

`python -m remuda.executor.launcher ADDRESS NODE STORE_FD` on node 0 (started by the engine); `nodes.run_node` on the
others. Forked ranks share the imported code copy-on-write and need no import of their own.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time

import msgspec
from setproctitle import setproctitle

from remuda import __version__
from remuda.config.engine import EngineConfig
from remuda.executor.address import Address, die_with_peer
from remuda.parallel.topology import node_ranks
from remuda.protocol.errors import RemudaError
from remuda.protocol.nodes import NodeFailed, NodeHello, NodeRefused, NodeWelcome, RankExited, StopNode
from remuda.protocol.wire import Channel, WireError, node_side

_NCCL = {
    # torch's watchdog thread would end the process without a word of ours: a rank notices by itself, and says so.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    # Multicast in NVLink's switches is for machines whose GPUs nobody else uses; they stay as they are set.
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
}
_EVIDENCE_S = 0.2  # after a first death, wait so long for others: the killed one matters more than its mourners


class Launcher:
    """Life: `join`, then `run` until the engine says stop, goes away, or a rank dies. No rank outlives `run`."""

    def __init__(self, engine: Address, node: int, store_fd: int | None) -> None:
        self._engine = engine
        self._node = node
        self._store_fd = store_fd
        self._ranks: dict[int, tuple[int, int]] = {}  # pidfd -> (rank, pid)

    def join(self, timeout_s: float) -> EngineConfig:
        """Meet the engine. Raises RemudaError if it cannot be reached or refuses us."""
        sock = self._engine.connect(timeout_s)
        die_with_peer(sock)
        self._channel: Channel = node_side(sock)
        self._channel.send(NodeHello(self._node, os.getpid(), socket.gethostname(), __version__))
        message = self._channel.receive()
        if isinstance(message, NodeRefused):
            raise RemudaError(message.message)
        if not isinstance(message, NodeWelcome):
            raise RemudaError("the engine stopped while this node joined")
        self._welcome: NodeWelcome = message
        return msgspec.msgpack.decode(message.config, type=EngineConfig)

    def run(self, config: EngineConfig) -> None:
        try:
            self._fork_ranks(config)
            self._watch()
        except WireError:
            pass  # the engine is gone
        except Exception as error:
            with contextlib.suppress(WireError):
                self._channel.send(NodeFailed(self._node, f"{type(error).__name__}: {error}"))
                self._told_to_stop()
        finally:
            self._kill()
            self._channel.close()

    def _fork_ranks(self, config: EngineConfig) -> None:
        # A fork keeps only the calling thread: libraries must not have started pools of their own by then.
        os.environ.update(OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its store warns of host names that nobody needs
        for name, value in _NCCL.items():
            os.environ.setdefault(name, value)
        gc.disable()  # it would look through all of torch again and again, for a few thousand small objects
        from remuda.executor.rank import RankPlace, RankProcess, become_child_of
        from remuda.parallel.groups import Rendezvous
        from remuda.worker.devices import import_ahead

        import_ahead(config)
        gc.freeze()  # the collector of a rank must not write into pages that it shares with the others
        gc.enable()
        me = os.getpid()
        for rank in node_ranks(self._node, config.parallel):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    become_child_of(me)
                    self._channel.close()
                    rendezvous = Rendezvous(
                        self._welcome.store_host,
                        self._welcome.store_port,
                        config.parallel.distributed_timeout_s,
                        self._store_fd if rank == 0 else None,
                        len(node_ranks(self._node, config.parallel)),
                    )
                    process = RankProcess(config, RankPlace(rank, self._node, self._engine, rendezvous))
                    code = process.run()
                finally:
                    os._exit(code)
            self._ranks[os.pidfd_open(pid)] = (rank, pid)
        if self._store_fd is not None:
            os.close(self._store_fd)

    def _watch(self) -> None:
        """Until the engine says stop (return) or is gone (WireError). The death of one rank is the end of all."""
        poller = select.poll()
        poller.register(self._channel.fileno(), select.POLLIN)
        for pidfd in self._ranks:
            poller.register(pidfd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if self._channel.fileno() in ready and self._told_to_stop():
                return
            if ready & self._ranks.keys():
                self._report_deaths()
                self._kill()
                while not self._told_to_stop():
                    pass
                return

    def _told_to_stop(self) -> bool:
        """Read (wait for) something from the engine; if it says stop, give the ranks the time that it grants."""
        self._channel.fill()
        for message in self._channel.pop():
            if isinstance(message, StopNode):
                self._wait_for_ranks(message.grace_s)
                return True
        return False

    def _report_deaths(self) -> None:
        """Killed ranks first: the others mostly failed because they lost a neighbour."""
        time.sleep(_EVIDENCE_S)
        dead = [exited for pidfd in list(self._ranks) if (exited := self._reap(pidfd)) is not None]
        for exited in sorted(dead, key=lambda exited: not exited.signal):
            self._channel.send(exited)

    def _reap(self, pidfd: int, wait: bool = False) -> RankExited | None:
        rank, pid = self._ranks[pidfd]
        done, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
        if not done:
            return None
        os.close(pidfd)
        del self._ranks[pidfd]
        code = os.waitstatus_to_exitcode(status)
        return RankExited(rank, self._node, max(code, -1), -code if code < 0 else 0)

    def _wait_for_ranks(self, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        poller = select.poll()
        for pidfd in self._ranks:
            poller.register(pidfd, select.POLLIN)
        while self._ranks and (left_s := deadline - time.monotonic()) > 0:
            for pidfd, _ in poller.poll(left_s * 1000):
                poller.unregister(pidfd)
                self._reap(pidfd)

    def _kill(self) -> None:
        for _, pid in self._ranks.values():
            os.kill(pid, signal.SIGKILL)
        for pidfd in list(self._ranks):
            self._reap(pidfd, wait=True)


def main() -> None:
    address, node, store_fd = Address(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    setproctitle(f"remuda: launcher {node}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launcher = Launcher(address, node, store_fd)
    try:
        config = launcher.join(timeout_s=60.0)
    except RemudaError:  # it is gone before we got to know it
        sys.exit(3)
    launcher.run(config)


if __name__ == "__main__":
    main()
