"""From what is seen when a replica breaks to the one sentence that names node, rank and cause."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from remuda.protocol.errors import PeerLost, ReplicaDied
from remuda.protocol.step import RankFailed

_HINTS = {
    "handshake": "Check that every node runs the same version of remuda",
    "mesh": "Check that the nodes reach each other on all ports, and --distributed-timeout-seconds",
    "weights": "Check the checkpoint directory on that node",
    "memory": "Lower the memory utilization or --max-model-len",
    "self-test": "See the message above; --native-kernels off rules the native kernels out",
}


@dataclass(frozen=True)
class Evidence:
    """One sign of trouble. The lowest `severity` seen is taken for the cause."""

    severity: int
    node: int
    rank: int | None
    text: str

    def as_error(self) -> ReplicaDied:
        who = f"node {self.node}" if self.rank is None else f"rank {self.rank} on node {self.node}"
        return ReplicaDied(f"{who} {self.text}", node=self.node, rank=self.rank, cause="node")


# What explains most comes first: a signal kills out of the blue, an error may be the echo of a lost neighbour.
KILLED, NODE_LOST, FAILED, EXITED, ECHO, DISCONNECTED = range(6)


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def rank_killed(node: int, rank: int, number: int) -> Evidence:
    why = " (the kernel's out-of-memory killer does this: see dmesg)" if number == signal.SIGKILL else ""
    return Evidence(KILLED, node, rank, f"was killed by {signal_name(number)}{why}")


def rank_exited(node: int, rank: int, code: int) -> Evidence:
    return Evidence(EXITED, node, rank, f"ended with exit code {code}")


def rank_failed(failed: RankFailed) -> Evidence:
    severity = ECHO if failed.code == PeerLost.default_code else FAILED
    return Evidence(severity, failed.node, failed.rank, f"failed: {failed.message.splitlines()[0]}")


def rank_disconnected(node: int, rank: int, reason: str) -> Evidence:
    return Evidence(DISCONNECTED, node, rank, f"is gone: {reason}")


def node_lost(node: int, reason: str) -> Evidence:
    return Evidence(NODE_LOST, node, None, f"is gone: {reason}")


def cause(seen: list[Evidence]) -> Evidence:
    """The first of the most telling signs. That a rank ended tells nothing once it has said why."""
    said_why = {evidence.rank for evidence in seen if evidence.severity in (FAILED, ECHO)}
    telling = [evidence for evidence in seen if evidence.severity != EXITED or evidence.rank not in said_why]
    return min(telling, key=lambda evidence: evidence.severity)


def describe_startup_failures(failures: list[RankFailed]) -> str:
    """One message for failures that came together: equal ones once, echoes of lost neighbours only on their own."""
    causes = [f for f in failures if rank_failed(f).severity == FAILED] or failures
    by_text: dict[tuple[str, str], list[RankFailed]] = {}
    for failure in causes:
        by_text.setdefault((failure.phase, failure.message), []).append(failure)
    lines = []
    for (phase, message), group in by_text.items():
        ranks = ", ".join(str(rank) for rank in sorted(f.rank for f in group))
        nodes = ", ".join(str(node) for node in sorted({f.node for f in group}))
        lines.append(f"rank {ranks} on node {nodes} failed in phase {phase}: {message}")
        if group[0].traceback:
            lines.append(group[0].traceback.rstrip())
        elif phase in _HINTS:
            lines.append(_HINTS[phase])
    return "\n".join(lines)


def describe_timeout(waiting_for: str, phases: dict[int, str], missing: list[int], timeout_s: float) -> str:
    """Who did not do what in time."""
    ranks = ", ".join(f"rank {rank} (phase {phases.get(rank, 'handshake')})" for rank in missing[:8])
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    hint = _HINTS.get(phases.get(missing[0], "handshake"), "") if missing else ""
    return f"no {waiting_for} within {timeout_s:.0f} s from {ranks}{more}. {hint}".rstrip()
