"""Linear layers that own their shard rule. N outputs, K inputs, T tokens; a rank's own sizes unless said otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remuda.kernels.table import KernelTable
from remuda.layers.base import BuildContext, CannotCut, Layer
from remuda.layers.quant import scheme_of
from remuda.layers.quant.scheme import LinearShard, Piece, Scheme
from remuda.weights.parameter import Parameter

if TYPE_CHECKING:
    import torch


class Linear(Layer):
    """y = x W^T (+ bias), W stacked from pieces of checkpoint modules. Subclasses say which pieces a rank holds.

    ``gated``: the output is silu(first half of y) * second half. ``scheme``: how the checkpoint stores the weight, if
    that is not for its quantization config to say.
    """

    def __init__(
        self,
        context: BuildContext,
        pieces: list[Piece],
        bias: bool = False,
        gated: bool = False,
        scheme: Scheme | None = None,
    ) -> None:
        shard = LinearShard(tuple(pieces))
        scheme = scheme or scheme_of(context.quant, [piece.module for piece in pieces])
        context.check_cut(pieces[0].inputs, scheme.inputs_together, pieces[0].module)
        self.weights = scheme.linear(shard, context.dtype)
        self.bias = Parameter((shard.outputs,), context.dtype, shard.bias) if bias else None
        self.outputs = shard.outputs
        self.gated = gated

    def pack(self, kernels: KernelTable) -> None:
        self.linear = self.weights.make(kernels, self.bias.take() if self.bias else None, self.gated)

    def bind_own(self, kernels: KernelTable) -> None:
        self.linear = kernels.repack_linear(self.linear)

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        return self.linear(x_TK)


class ReplicatedLinear(Linear):
    """The whole weight on every rank."""

    def __init__(
        self,
        context: BuildContext,
        modules: list[str],
        inputs: int,
        outputs: int,
        bias: bool = False,
        scheme: Scheme | None = None,
    ) -> None:
        pieces = [Piece(module, (outputs, inputs), (0, outputs), (0, inputs)) for module in modules]
        super().__init__(context, pieces, bias, scheme=scheme)


class ColumnParallelLinear(Linear):
    """Each of `modules` cut across its outputs, this rank's parts stacked. The input is whole, the output a shard."""

    def __init__(
        self, context: BuildContext, modules: list[str], inputs: int, outputs: int, gated: bool = False
    ) -> None:
        rows = context.cut(outputs, f"outputs of {modules[0]}")
        pieces = [Piece(module, (outputs, inputs), rows, (0, inputs)) for module in modules]
        super().__init__(context, pieces, gated=gated)


class QKVParallelLinear(Linear):
    """Query heads cut across ranks; key and value heads too, or replicated where ranks outnumber them."""

    def __init__(self, context: BuildContext, prefix: str) -> None:
        config = context.config
        hidden, width = config.hidden_size, config.head_dim
        first, last = context.cut(config.num_heads, "attention heads")
        first_kv, last_kv = _kv_heads(context)
        self.num_heads, self.num_kv_heads = last - first, last_kv - first_kv

        def heads(name: str, total: int, first: int, count: int) -> Piece:
            return Piece(
                f"{prefix}.{name}", (total * width, hidden), (first * width, (first + count) * width), (0, hidden)
            )

        queries = heads("q_proj", config.num_heads, first, self.num_heads)
        keys, values = (heads(n, config.num_kv_heads, first_kv, self.num_kv_heads) for n in ("k_proj", "v_proj"))
        super().__init__(context, [queries, keys, values])


def _kv_heads(context: BuildContext) -> tuple[int, int]:
    """This rank's [start, stop) of the key and value heads: where ranks outnumber them, one shared with others."""
    total, ranks = context.config.num_kv_heads, context.tp_size
    if total % ranks and ranks % total:
        raise CannotCut(ranks, f"it neither divides the {total} key/value heads nor is a multiple of them")
    first = context.tp_rank * total // ranks
    return first, first + max(1, total // ranks)


class RowParallelLinear(Linear):
    """Cut across its inputs: each rank gives a partial sum, which whoever adds the residual adds up over the ranks."""

    def __init__(self, context: BuildContext, module: str, inputs: int, outputs: int) -> None:
        columns = context.cut(inputs, f"inputs of {module}")
        super().__init__(context, [Piece(module, (outputs, inputs), (0, outputs), columns)])
