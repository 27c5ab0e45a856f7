"""Which part of which experts a rank holds, and where the checkpoint keeps it, in both published layouts.

E experts of this rank, H hidden, I intermediate size of this rank's part of an expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from remuda.layers.base import BuildContext, CannotCut
from remuda.parallel.topology import expert_range
from remuda.weights.parameter import Slice


class StoredExperts(Protocol):
    """Where the float weights of a shard lie, in the checkpoint's own orientation: gate (first) and up, and down."""

    @property
    def gate_up_shape(self) -> tuple[int, int, int]: ...

    @property
    def down_shape(self) -> tuple[int, int, int]: ...

    @property
    def inputs(self) -> int:
        """The dimension of both that products sum over."""
        ...

    def gate_up(self) -> tuple[Slice, ...]: ...

    def down(self) -> tuple[Slice, ...]: ...


ExpertLayout = Callable[["ExpertShard"], StoredExperts]  # FusedExperts or ExpertModules
ModuleNames = tuple[str, str, str]  # of an expert's gate, up and down projections
PROJECTIONS: ModuleNames = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ExpertShard:
    """Experts `owned`, and of each the columns [first, last) of its intermediate size."""

    prefix: str
    total: int  # experts of the layer
    hidden: int
    inner: int  # whole intermediate size of an expert
    owned: range
    columns: tuple[int, int]
    layout: ExpertLayout  # of the architecture's unquantized checkpoints
    names: ModuleNames = PROJECTIONS

    @classmethod
    def of(cls, context: BuildContext, prefix: str, layout: ExpertLayout, names: ModuleNames) -> ExpertShard:
        """Whole experts under expert parallelism, else a slice of every expert."""
        moe = context.config.moe
        assert moe is not None
        if context.topology.expert_parallel:
            if context.tp_size > moe.num_experts:
                raise CannotCut(context.tp_size, f"there are only {moe.num_experts} experts to deal out")
            owned = expert_range(moe.num_experts, context.tp_size, context.tp_rank)
            columns = (0, moe.intermediate_size)
        else:
            owned, columns = range(moe.num_experts), context.cut(moe.intermediate_size, "columns of an expert")
        hidden, inner = context.config.hidden_size, moe.intermediate_size
        return cls(prefix, moe.num_experts, hidden, inner, owned, columns, layout, names)

    def stored(self) -> StoredExperts:
        return self.layout(self)

    @property
    def count(self) -> int:
        return len(self.owned)

    @property
    def width(self) -> int:
        return self.columns[1] - self.columns[0]

    @property
    def rows(self) -> tuple[int, int]:
        """All of the hidden size."""
        return 0, self.hidden

    def modules(self) -> list[tuple[tuple[int, int], str]]:
        """Each owned expert's place in this rank's tensors and its module name."""
        return [((place, place + 1), f"{self.prefix}.{expert}") for place, expert in enumerate(self.owned)]

    def halves(self) -> tuple[tuple[str, int, tuple[int, int]], ...]:
        """(projection, its first column in the fused tensor, its columns in this rank's gate_up)."""
        gate, up, _ = self.names
        return (gate, 0, (0, self.width)), (up, self.inner, (self.width, 2 * self.width))


@dataclass(frozen=True)
class FusedExperts:
    """Two tensors of all experts, as x @ W takes them: gate_up_proj [all, H, 2 inner], down_proj [all, inner, H]."""

    shard: ExpertShard
    inputs = 1

    @property
    def gate_up_shape(self) -> tuple[int, int, int]:
        return self.shard.count, self.shard.hidden, 2 * self.shard.width

    @property
    def down_shape(self) -> tuple[int, int, int]:
        return self.shard.count, self.shard.width, self.shard.hidden

    def gate_up(self) -> tuple[Slice, ...]:
        shard, experts, here = self.shard, self._experts(), (0, self.shard.count)
        source, shape = f"{shard.prefix}.gate_up_proj", (shard.total, shard.hidden, 2 * shard.inner)
        if shard.width == shard.inner:
            both = (0, 2 * shard.inner)
            return (Slice(source, shape, (experts, shard.rows, both), (here, shard.rows, both)),)
        first, last = shard.columns
        return tuple(
            Slice(source, shape, (experts, shard.rows, (offset + first, offset + last)), (here, shard.rows, into))
            for _, offset, into in shard.halves()
        )

    def down(self) -> tuple[Slice, ...]:
        shard = self.shard
        source, shape = f"{shard.prefix}.down_proj", (shard.total, shard.inner, shard.hidden)
        into = ((0, shard.count), (0, shard.width), shard.rows)
        return (Slice(source, shape, (self._experts(), shard.columns, shard.rows), into),)

    def _experts(self) -> tuple[int, int]:
        return self.shard.owned.start, self.shard.owned.stop


@dataclass(frozen=True)
class ExpertModules:
    """Three linear modules [out, in] of each expert, stacked as they are: gate_up [E, 2I, H], down [E, H, I]."""

    shard: ExpertShard
    inputs = 2

    @property
    def gate_up_shape(self) -> tuple[int, int, int]:
        return self.shard.count, 2 * self.shard.width, self.shard.hidden

    @property
    def down_shape(self) -> tuple[int, int, int]:
        return self.shard.count, self.shard.hidden, self.shard.width

    def gate_up(self) -> tuple[Slice, ...]:
        return self._gate_up("weight", self.shard.hidden)

    def down(self) -> tuple[Slice, ...]:
        return self._down("weight", self.shard.inner, self.shard.columns)

    def gate_up_scale(self) -> tuple[Slice, ...]:
        """weight_scale [out, 1] of each expert -> its rows of [E, 2I, 1]."""
        return self._gate_up("weight_scale", 1)

    def down_scale(self) -> tuple[Slice, ...]:
        """weight_scale [out, 1] of each expert -> its rows of [E, H, 1]."""
        return self._down("weight_scale", 1, (0, 1))

    def _gate_up(self, tensor: str, inputs: int) -> tuple[Slice, ...]:
        shard, every = self.shard, (0, inputs)
        return tuple(
            Slice(f"{prefix}.{name}.{tensor}", (shard.inner, inputs), (shard.columns, every), (here, into, every))
            for here, prefix in shard.modules()
            for name, _, into in shard.halves()
        )

    def _down(self, tensor: str, inputs: int, columns: tuple[int, int]) -> tuple[Slice, ...]:
        shard, into = self.shard, (0, columns[1] - columns[0])
        *_, name = shard.names
        return tuple(
            Slice(f"{prefix}.{name}.{tensor}", (shard.hidden, inputs), (shard.rows, columns), (here, shard.rows, into))
            for here, prefix in shard.modules()
        )
