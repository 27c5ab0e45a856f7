"""Self-attention over the paged KV cache. T tokens, H hidden, Q query heads of this rank, D head_dim.

X = (Q + 2 x key/value heads) x D.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remuda.kernels.table import HeadLayout, HeadNorm, KernelTable
from remuda.layers.base import BuildContext, Layer
from remuda.layers.batch import ForwardBatch
from remuda.layers.linear import QKVParallelLinear, RowParallelLinear
from remuda.layers.norm import replicated

if TYPE_CHECKING:
    import torch


class Attention(Layer):
    """Grouped-query attention of global layer `index`, of any kind in `kv/specs.py`, with or without rope.

    `group` and `depth` say where its keys and values live: table `group` of the batch, tensors `depth` of the stage.
    """

    part = "attention"

    def __init__(self, context: BuildContext, prefix: str, index: int, group: int, depth: int) -> None:
        config, layer = context.config, context.config.layers[index]
        self.qkv = QKVParallelLinear(context, prefix)
        self.output = RowParallelLinear(
            context, f"{prefix}.o_proj", config.num_heads * config.head_dim, config.hidden_size
        )
        self.heads = HeadLayout(self.qkv.num_heads, self.qkv.num_kv_heads, config.head_dim, config.rope_interleaved)
        self.group = group
        self.depth = depth
        self.chunk, self.window = layer.attention.chunk, layer.attention.window
        self.rope = layer.rope
        self.tuned = layer.temperature_tuning
        self.norm = HeadNorm(config.rms_norm_eps) if layer.qk_norm else None
        self.scale = config.head_dim**-0.5

    def bind_own(self, kernels: KernelTable) -> None:
        serving = kernels.attention(self.heads, self.window)
        self.rope_kv, self.paged_attention = serving.rope_kv, serving.paged_attention

    def __call__(
        self, x_TH: torch.Tensor, batch: ForwardBatch, cos_sin_TD: torch.Tensor, temperature_T: torch.Tensor | None
    ) -> torch.Tensor:
        k, v = batch.kv[self.depth]
        qkv_TX = self.qkv(x_TH)
        angles_TD = cos_sin_TD if self.rope else None
        temperature_T = temperature_T if self.tuned else None
        q_TQD = self.rope_kv(qkv_TX, angles_TD, temperature_T, self.heads, batch, self.group, k, v, self.norm)
        o_TQD = self.paged_attention(q_TQD, k, v, batch, self.group, self.chunk, self.scale, self.window)
        return self.output(o_TQD.flatten(1))


class NormedHeadsAttention(Attention):
    """With an RMS norm, weights included, of every query and key head before rope."""

    def __init__(self, context: BuildContext, prefix: str, index: int, group: int, depth: int) -> None:
        super().__init__(context, prefix, index, group, depth)
        width = (context.config.head_dim,)
        self.eps = context.config.rms_norm_eps
        self.q_norm = replicated(context, f"{prefix}.q_norm.weight", width)
        self.k_norm = replicated(context, f"{prefix}.k_norm.weight", width)

    def pack(self, kernels: KernelTable) -> None:
        self.norm = HeadNorm(self.eps, before_rope=True, q_weight_D=self.q_norm.take(), k_weight_D=self.k_norm.take())
