"""How far a rank is while a replica starts: from the rank to the engine, and on to whoever shows it."""

from __future__ import annotations

import msgspec


class PhaseProgress(msgspec.Struct, frozen=True, tag="progress"):
    """`done` of `total` units of a phase: bytes for weights, else one."""

    rank: int
    phase: str  # handshake, mesh, weights, memory, self-test
    done: int
    total: int
    detail: str = ""
