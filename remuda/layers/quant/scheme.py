"""What a quantization scheme is: which parameters stand for a weight, and what the kernels make of them.

A rank's own sizes: N outputs and K inputs of a linear layer, E experts, H hidden, I intermediate size.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from remuda.layers.base import Layer
from remuda.weights.parameter import Slice

if TYPE_CHECKING:
    import torch

    from remuda.kernels import table
    from remuda.kernels.table import KernelTable, Weighting
    from remuda.layers.expert_shard import ExpertShard


@dataclass(frozen=True)
class Piece:
    """Rows [outputs) and columns [inputs) of one checkpoint module, stacked below the piece before it."""

    module: str
    shape: tuple[int, int]  # whole weight in the checkpoint: outputs, inputs
    outputs: tuple[int, int]
    inputs: tuple[int, int]

    @property
    def rows(self) -> int:
        return self.outputs[1] - self.outputs[0]


@dataclass(frozen=True)
class LinearShard:
    """What a rank holds of a linear layer: W [N, K], stacked from pieces of checkpoint modules."""

    pieces: tuple[Piece, ...]

    @property
    def outputs(self) -> int:
        return sum(piece.rows for piece in self.pieces)

    @property
    def inputs(self) -> int:
        first, last = self.pieces[0].inputs
        return last - first

    def weight(self) -> tuple[Slice, ...]:
        """weight [outputs, inputs] of each module -> its rows of [N, K]."""
        return tuple(
            Slice(f"{piece.module}.weight", piece.shape, (piece.outputs, piece.inputs), (rows, (0, self.inputs)))
            for piece, rows in self.stacked()
        )

    def bias(self) -> tuple[Slice, ...]:
        """bias [outputs] of each module -> its part of [N]."""
        return tuple(
            Slice(f"{piece.module}.bias", piece.shape[:1], (piece.outputs,), (rows,)) for piece, rows in self.stacked()
        )

    def channel_scale(self) -> tuple[Slice, ...]:
        """weight_scale [outputs, 1] of each module -> its rows of [N, 1]."""
        return tuple(
            Slice(f"{piece.module}.weight_scale", (piece.shape[0], 1), (piece.outputs, (0, 1)), (rows, (0, 1)))
            for piece, rows in self.stacked()
        )

    def stacked(self) -> list[tuple[Piece, tuple[int, int]]]:
        """Each piece and the rows of W that it fills."""
        row = 0
        return [(piece, (row, row := row + piece.rows)) for piece in self.pieces]


class LinearWeights(Layer):
    """The parameters that stand for one linear layer's weight."""

    @abstractmethod
    def make(self, kernels: KernelTable, bias_N: torch.Tensor | None, gated: bool) -> table.Linear:
        """Once loaded: hand the parameters' tensors over to what computes with them."""


class ExpertWeights(Layer):
    """The parameters that stand for one rank's experts."""

    @abstractmethod
    def make(self, kernels: KernelTable, weighting: Weighting) -> table.Experts:
        """Once loaded: hand the parameters' tensors over to what computes with them."""


def applied(weight: torch.Tensor, inputs: int) -> torch.Tensor:
    """A stack of experts' weights whose dimension `inputs` is summed over, as x @ W takes it: a view."""
    return weight if inputs == 1 else weight.transpose(1, 2)


class Scheme(Protocol):
    """One format of weights. `dtype` is what is computed in."""

    inputs_together: int  # a rank's inputs begin and end at multiples of it

    def linear(self, shard: LinearShard, dtype: str) -> LinearWeights: ...

    def experts(self, shard: ExpertShard, dtype: str) -> ExpertWeights: ...
