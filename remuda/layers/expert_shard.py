"""Which part of which experts a rank holds, and where the checkpoint keeps it, in both published layouts.

E experts of this rank, H hidden, I intermediate size of this rank's part of an expert.
"""

from __future__ import annotations

from dataclasses import dataclass

from remuda.layers.base import BuildContext
from remuda.parallel.topology import expert_range
from remuda.weights.parameter import Slice

Slices = tuple[tuple[Slice, ...], tuple[Slice, ...]]  # of gate_up, of down


@dataclass(frozen=True)
class ExpertShard:
    """Experts `owned`, and of each the columns [first, last) of its intermediate size."""

    prefix: str
    total: int  # experts of the layer
    hidden: int
    inner: int  # whole intermediate size of an expert
    owned: range
    columns: tuple[int, int]

    @classmethod
    def of(cls, context: BuildContext, prefix: str) -> ExpertShard:
        """Whole experts under expert parallelism, else a slice of every expert."""
        moe = context.config.moe
        assert moe is not None
        if context.topology.expert_parallel:
            owned = expert_range(moe.num_experts, context.tp_size, context.tp_rank)
            columns = (0, moe.intermediate_size)
        else:
            owned, columns = range(moe.num_experts), context.cut(moe.intermediate_size)
        return cls(prefix, moe.num_experts, context.config.hidden_size, moe.intermediate_size, owned, columns)

    @property
    def count(self) -> int:
        return len(self.owned)

    @property
    def width(self) -> int:
        return self.columns[1] - self.columns[0]

    def _halves(self) -> tuple[tuple[str, int, tuple[int, int]], ...]:
        """(projection, its first column in the fused tensor, its columns in this rank's gate_up)."""
        return ("gate_proj", 0, (0, self.width)), ("up_proj", self.inner, (self.width, 2 * self.width))

    def fused(self) -> Slices:
        """gate_up_proj [experts, H, 2 inner], gate first, and down_proj [experts, inner, H], as x @ W takes them."""
        experts, here = (self.owned.start, self.owned.stop), (0, self.count)
        rows, (first, last) = (0, self.hidden), self.columns
        source, shape = f"{self.prefix}.gate_up_proj", (self.total, self.hidden, 2 * self.inner)
        if self.width == self.inner:
            both = (0, 2 * self.inner)
            gate_up = [Slice(source, shape, (experts, rows, both), (here, rows, both))]
        else:
            gate_up = [
                Slice(source, shape, (experts, rows, (offset + first, offset + last)), (here, rows, into))
                for _, offset, into in self._halves()
            ]
        source, shape = f"{self.prefix}.down_proj", (self.total, self.inner, self.hidden)
        down = Slice(source, shape, (experts, self.columns, rows), (here, (0, self.width), rows))
        return tuple(gate_up), (down,)

    def per_expert(self) -> Slices:
        """Float8 {gate,up,down}_proj.weight [out, in] of each expert, turned into the fused orientation."""
        gate_up, down = [], []
        rows = (0, self.hidden)
        for here, prefix in self._modules():
            for name, _, into in self._halves():
                source, shape = f"{prefix}.{name}.weight", (self.inner, self.hidden)
                gate_up.append(Slice(source, shape, (self.columns, rows), (here, rows, into), True))
            source, shape = f"{prefix}.down_proj.weight", (self.hidden, self.inner)
            into = (0, self.width)
            down.append(Slice(source, shape, (rows, self.columns), (here, into, rows), True))
        return tuple(gate_up), tuple(down)

    def scales(self) -> Slices:
        """weight_scale [out, 1] of each expert -> a row of [E, 2 I] and of [E, H]."""
        gate_up, down = [], []
        for here, prefix in self._modules():
            for name, _, into in self._halves():
                source = f"{prefix}.{name}.weight_scale"
                gate_up.append(Slice(source, (self.inner, 1), (self.columns, (0, 1)), (here, into), transpose=True))
            source, rows = f"{prefix}.down_proj.weight_scale", (0, self.hidden)
            down.append(Slice(source, (self.hidden, 1), (rows, (0, 1)), (here, rows), transpose=True))
        return tuple(gate_up), tuple(down)

    def _modules(self) -> list[tuple[tuple[int, int], str]]:
        """Each owned expert's place in this rank's tensors and its module name."""
        return [((place, place + 1), f"{self.prefix}.{expert}") for place, expert in enumerate(self.owned)]
