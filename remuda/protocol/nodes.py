"""Messages between the engine and the launcher of a node: the process that forks the node's ranks and watches them."""

from __future__ import annotations

import msgspec


class NodeHello(msgspec.Struct, frozen=True, tag="node_hello"):
    """First message of a launcher. The engine refuses a version other than its own."""

    node: int
    pid: int
    host: str
    version: str


class NodeWelcome(msgspec.Struct, frozen=True, tag="node_welcome"):
    """What the launcher needs to start its ranks."""

    config: bytes  # msgpack of EngineConfig
    store_host: str  # where the ranks meet (rank 0 serves the store)
    store_port: int


class NodeRefused(msgspec.Struct, frozen=True, tag="node_refused"):
    message: str


class NodeFailed(msgspec.Struct, frozen=True, tag="node_failed"):
    """The launcher cannot start its ranks."""

    node: int
    message: str


class RankExited(msgspec.Struct, frozen=True, tag="rank_exited"):
    """A rank ended although nobody had asked it to. The launcher then kills the node's other ranks."""

    rank: int
    node: int
    exit_code: int  # -1 if a signal killed it
    signal: int = 0


class StopNode(msgspec.Struct, frozen=True, tag="stop_node"):
    """End the node's ranks: at once, or after they had `grace_s` to end by themselves (StopRank)."""

    grace_s: float = 0.0


ToNode = NodeWelcome | NodeRefused | StopNode
FromNode = NodeHello | NodeFailed | RankExited
