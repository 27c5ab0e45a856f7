"""What every layer is: a plain object that declares parameters when built and is bound to its kernels once loaded.

Not torch.nn.Module: a decode step of a small model calls a hundred layers, and Module's call and attribute protocol
would cost more than some of them. Building a layer allocates nothing and imports no torch, so any rank's share can be
sized anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from remuda.config.model import ModelConfig
from remuda.config.quant import QuantRule
from remuda.parallel.topology import Topology
from remuda.protocol.errors import ConfigError
from remuda.weights.parameter import Parameter

if TYPE_CHECKING:
    from remuda.kernels.table import KernelTable
    from remuda.parallel.collectives import Communicator


class CannotCut(ConfigError):
    """The model cannot be dealt to so many tensor-parallel ranks."""

    def __init__(self, tp_size: int, reason: str) -> None:
        super().__init__(f"--tensor-parallel-size {tp_size} does not work: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class BuildContext:
    """What a layer's constructor needs to know of the rank that it is built for."""

    config: ModelConfig
    topology: Topology
    comm: Communicator  # among the TP ranks of this stage
    device: str  # cpu, cuda:0, ...

    @property
    def dtype(self) -> str:
        """What is computed in: a name of protocol/dtypes.py."""
        return self.config.dtype

    @property
    def tp_size(self) -> int:
        return self.topology.tp_size

    @property
    def tp_rank(self) -> int:
        return self.topology.tp_rank

    @cached_property
    def quant(self) -> QuantRule:
        return QuantRule(self.config.quant)

    def cut(self, size: int, what: str) -> tuple[int, int]:
        """This rank's [start, stop) of a dimension that TP must divide. Raises CannotCut."""
        if size % self.tp_size:
            raise CannotCut(self.tp_size, f"it does not divide the {size} {what}")
        part = size // self.tp_size
        return self.tp_rank * part, (self.tp_rank + 1) * part

    def check_cut(self, inputs: tuple[int, int], together: int, module: str) -> None:
        """A rank's [start, stop) of the inputs of `module` must keep those together that share a scale.

        Raises CannotCut.
        """
        if inputs[0] % together or inputs[1] % together:
            raise CannotCut(self.tp_size, f"it cuts through a group of {together} inputs of {module}")


class Layer:
    """Base of layers and models.

    Sub-layers are found in attributes and in lists of layers, in order of assignment; an attribute whose name starts
    with an underscore is a reference to a layer that belongs elsewhere.
    """

    part = ""  # what the planner's table calls it with all that is in it; empty: only what is in it may have a name
    used = 1.0  # the share of its parameters that a token of text passes through

    def bind(self, kernels: KernelTable) -> None:
        """Take what runs in and below this layer from a table: once packed, and again when there is a better one."""
        for layer in self.walk():
            layer.bind_own(kernels)

    def pack(self, kernels: KernelTable) -> None:
        """Called once, after loading: take the parameters' tensors and make what runs of them."""

    def bind_own(self, kernels: KernelTable) -> None:
        """This layer's part of `bind`; the layers below it are bound already."""

    def sublayers(self) -> Iterator[Layer]:
        """Those right below this one."""
        for name, value in vars(self).items():
            if name.startswith("_"):
                continue
            if isinstance(value, Layer):
                yield value
            elif isinstance(value, list):
                yield from (item for item in value if isinstance(item, Layer))

    def walk(self) -> Iterator[Layer]:
        """This layer's sub-layers, depth first, then itself."""
        for layer in self.sublayers():
            yield from layer.walk()
        yield self

    def own_parameters(self) -> list[Parameter]:
        return [value for value in vars(self).values() if isinstance(value, Parameter)]

    def parameters(self) -> list[Parameter]:
        """Every parameter below and in this layer."""
        return [parameter for layer in self.walk() for parameter in layer.own_parameters()]

    __call__: Any
