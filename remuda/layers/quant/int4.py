"""compressed-tensors pack-quantized: symmetric 4-bit integers, eight in an int32, and a scale per group of inputs.

They stay packed in memory. Experts are always three modules each. K inputs of a rank's rows, in G groups; N
outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from remuda.layers.base import Layer
from remuda.layers.quant.scheme import ExpertWeights, LinearShard, LinearWeights, Piece
from remuda.weights.parameter import Parameter, Region, Slice

if TYPE_CHECKING:
    import torch

    from remuda.kernels import table
    from remuda.kernels.table import KernelTable, Weighting
    from remuda.layers.expert_shard import ExpertShard

_PER_WORD = 8
Placed = Iterator[tuple[Piece, Region]]  # a piece of a module, and where its rows go


class Int4:
    """`group_size` inputs share a scale; 0: all of a module's."""

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size
        self.inputs_together = group_size or _PER_WORD

    def linear(self, shard: LinearShard, dtype: str) -> LinearWeights:
        return _Linear(self.group_size, shard, dtype)

    def experts(self, shard: ExpertShard, dtype: str) -> ExpertWeights:
        return _Experts(self.group_size, shard, dtype)


class _Rows(Layer):
    """Packed weights [*places, K]: words [*places, K / 8] int32 and scales [*places, G]."""

    def __init__(
        self,
        group_size: int,
        dtype: str,
        places: tuple[int, ...],
        inputs: tuple[int, int],
        placed: Callable[[], Placed],
    ) -> None:
        self._group_size = group_size
        self._placed = placed
        words, groups = (stop - start for start, stop in (self._words(inputs), self._groups(inputs)))
        self.words = Parameter((*places, words), "int32", self._word_slices)
        self.scale = Parameter((*places, groups), dtype, self._scale_slices)

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(words, scales), once loaded."""
        return self.words.take(), self.scale.take()

    def _words(self, inputs: tuple[int, int]) -> tuple[int, int]:
        return inputs[0] // _PER_WORD, inputs[1] // _PER_WORD

    def _groups(self, inputs: tuple[int, int]) -> tuple[int, int]:
        return (inputs[0] // self._group_size, inputs[1] // self._group_size) if self._group_size else (0, 1)

    def _word_slices(self) -> tuple[Slice, ...]:
        return self._slices("weight_packed", self._words)

    def _scale_slices(self) -> tuple[Slice, ...]:
        return self._slices("weight_scale", self._groups)

    def _slices(self, name: str, columns: Callable[[tuple[int, int]], tuple[int, int]]) -> tuple[Slice, ...]:
        """Tensor `name` of each module, in which `columns` says what stands for a range of inputs."""
        slices = []
        for piece, into in self._placed():
            stored, (start, stop) = columns((0, piece.shape[1]))[1], columns(piece.inputs)
            region = (piece.outputs, (start, stop))
            slices.append(Slice(f"{piece.module}.{name}", (piece.shape[0], stored), region, (*into, (0, stop - start))))
        return tuple(slices)


class _Linear(LinearWeights):
    def __init__(self, group_size: int, shard: LinearShard, dtype: str) -> None:
        def placed() -> Placed:
            return ((piece, (rows,)) for piece, rows in shard.stacked())

        self.rows = _Rows(group_size, dtype, (shard.outputs,), shard.pieces[0].inputs, placed)

    def make(self, kernels: KernelTable, bias_N: torch.Tensor | None, gated: bool) -> table.Linear:
        return kernels.make_int4_linear(*self.rows.take(), bias_N, gated)


class _Experts(ExpertWeights):
    """In the modules' orientation: gate_up [E, 2I, H], gate first, and down [E, H, I]."""

    def __init__(self, group_size: int, shard: ExpertShard, dtype: str) -> None:
        def gate_up() -> Placed:
            for here, prefix in shard.modules():
                for name, _, into in shard.halves():
                    shape = (shard.inner, shard.hidden)
                    yield Piece(f"{prefix}.{name}", shape, shard.columns, shard.rows), (here, into)

        def down() -> Placed:
            *_, name = shard.names
            for here, prefix in shard.modules():
                shape = (shard.hidden, shard.inner)
                yield Piece(f"{prefix}.{name}", shape, shard.rows, shard.columns), (here, shard.rows)

        self.gate_up = _Rows(group_size, dtype, (shard.count, 2 * shard.width), shard.rows, gate_up)
        self.down = _Rows(group_size, dtype, (shard.count, shard.hidden), shard.columns, down)

    def make(self, kernels: KernelTable, weighting: Weighting) -> table.Experts:
        return kernels.make_int4_experts(self.gate_up.take(), self.down.take(), weighting)
