"""The kernel table: every operation that layers run, chosen once per process by device and dtype.

A layer takes what it needs when it is bound (`Layer.bind`) and asks nothing at a call. Imports no torch, so that the
planner and the HTTP process may import layers. `select.py` fills tables: a new device adds one there, and no `if`
anywhere else.

T tokens, H hidden, X = (Q + 2 K) * D with Q query and K key/value heads of this rank and D head_dim, N outputs and K
inputs of a linear layer, E experts of this rank, I intermediate, k choices per token, P pages, B block_size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from remuda.config.model import RopeScaling
    from remuda.kernels.batch import BatchView


TILED_HEAD_DIMS = (16, 32, 64, 128, 256)
"""What attention on GPUs has tiles for; torch serves other heads there."""


@dataclass(frozen=True)
class HeadLayout:
    """How the rows of a fused QKV projection divide into heads: Q query heads, K key heads, K value heads."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    interleaved: bool  # rope rotates pairs (2j, 2j + 1); otherwise (j, j + D/2)


@dataclass(frozen=True, eq=False)
class HeadNorm:
    """RMS norm of each query and key head, in float32, before or after the rotation; without weights: plain L2 norm."""

    eps: float
    before_rope: bool = False
    q_weight_D: Tensor | None = None
    k_weight_D: Tensor | None = None  # both or none


class Weighting(Enum):
    """What a routing weight multiplies."""

    INPUT = "input"  # expert(weight * x): Llama 4
    OUTPUT = "output"  # weight * expert(x): most others


class RopeKV(Protocol):
    def __call__(
        self,
        qkv_TX: Tensor,
        cos_sin_TD: Tensor | None,
        temperature_T: Tensor | None,
        layout: HeadLayout,
        batch: BatchView,
        group: int,
        k: Tensor,
        v: Tensor,
        norm: HeadNorm | None = None,
    ) -> Tensor:
        """Finish the queries [T, Q, D]; put keys and values into pages k, v [P, K, B, D] at the places of `group`.

        The caller gives up `qkv_TX`. ``cos_sin_TD`` float32, cosines then sines of the step's positions; None: no rope.
        ``temperature_T`` float32 multiplies the queries at the end.
        """
        ...


class PagedAttention(Protocol):
    def __call__(
        self,
        q_TQD: Tensor,
        k: Tensor,
        v: Tensor,
        batch: BatchView,
        group: int,
        chunk: int | None,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        """Causal attention of every row over its pages k, v [P, K, B, D] -> [T, Q, D].

        With ``chunk`` a query at position p sees only keys of positions p // chunk * chunk ... p, with ``window`` only
        those of positions p - window + 1 ... p.
        """
        ...


@dataclass(frozen=True)
class AttentionKernels:
    """What serves the self-attention of one head layout."""

    rope_kv: RopeKV
    paged_attention: PagedAttention


class ChooseAttention(Protocol):
    def __call__(self, layout: HeadLayout, window: int | None = None) -> AttentionKernels:
        """What serves layers of this layout that see a window of so many positions, if any."""
        ...


class Linear(Protocol):
    """One linear layer that owns its weight and its memory layout."""

    def __call__(self, x_TK: Tensor) -> Tensor:
        """[..., K] -> [..., N] in x's dtype; gated: silu(first half of y) * second half, [..., N / 2]."""
        ...

    def to_float32(self, x_TK: Tensor) -> Tensor:
        """The same as float32: for logits, which keep the precision of the sums where a kernel has it."""
        ...


class Experts(Protocol):
    """The SwiGLU experts of one rank; owns their weights and memory layout."""

    def __call__(self, x_TH: Tensor, expert_Tk: Tensor, weight_Tk: Tensor) -> Tensor:
        """The weighted sum over a token's choices of expert(x) -> [T, H].

        ``expert_Tk`` int64 counts this rank's experts from 0; -1 means that the expert lives on another rank.
        """
        ...


@dataclass(frozen=True)
class SigmoidMoEParts:
    """What Llama 4's expert block is made of, packed by one table."""

    router: Linear
    experts: Experts
    first_expert: int  # of all, that this rank holds
    gate_up: Linear  # of the shared expert, gated
    down: Linear
    top_k: int


class Fused(Protocol):
    """Does what the parts of a block do, in fewer kernels."""

    def __call__(self, x_TH: Tensor) -> Tensor: ...


class MakeLinear(Protocol):
    def __call__(
        self, weight_NK: Tensor, bias_N: Tensor | None = None, scale_N: Tensor | None = None, gated: bool = False
    ) -> Linear:
        """Pack y = (x W^T) * scale + bias.

        The weight is in the compute dtype, or float8_e4m3fn with ``scale_N`` (float32, of output channels): it stays
        float8 in memory and is cast, exactly, on its way to the product.
        """
        ...


class MakeExperts(Protocol):
    def __call__(
        self,
        gate_up_EH2I: Tensor,
        down_EIH: Tensor,
        scales: tuple[Tensor, Tensor] | None = None,
        weighting: Weighting = Weighting.INPUT,
    ) -> Experts:
        """Pack gate_up (gate half first) and down, applied as x @ W.

        In the compute dtype, or float8_e4m3fn with ``scales``, float32 factors of output channels, ([E, 2I], [E, H]).
        """
        ...


@dataclass(frozen=True)
class DecodeInputs:
    """What attention reads of a step with one token a row. S rows, G KV groups, B blocks of a table."""

    context_S: Tensor  # int32: the new token included
    places_GS: Tensor  # int64: page * block_size + offset of the new token
    tables_GSB: Tensor  # int32


class EmbedTokens(Protocol):
    def __call__(
        self, tokens_NL: Tensor, slots_T: Tensor, positions_T: Tensor, weight_VH: Tensor, first: int, real: int
    ) -> Tensor:
        """Rows [T, H] of the ids at tokens_NL[slot, position], whose row 0 is id `first`; zeros for ids outside
        [first, first + real)."""
        ...


@dataclass(frozen=True)
class KernelTable:
    """Operations and constructors. Where no shape is said, a tensor keeps its input's shape and dtype."""

    name: str
    # (x_TH, weight_H | None, eps) -> y_TH: x / rms(x) * weight, computed in float32. No weight: plain L2 norm.
    rms_norm: Callable[[Tensor, Tensor | None, float], Tensor]
    # (x_TH, residual_TH, weight_H, eps) -> (rms_norm(residual + x), residual + x). The caller gives up both inputs.
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    # (x_TH, weight_H, bias_H, eps)
    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    # (gate_up_T2I) -> silu(gate) * up [T, I]; the gate is the first half of the last dimension.
    silu_mul: Callable[[Tensor], Tensor]
    # (x): exact, by the error function
    gelu: Callable[[Tensor], Tensor]
    # (ids_T int64, weight_VH) -> rows_TH, a new tensor
    embedding: Callable[[Tensor, Tensor], Tensor]
    embed_tokens: EmbedTokens
    # (head_dim, theta, scaling | None, tuning (floor, scale) | None, device) -> a callable: positions_T int64 ->
    # cos_sin_TD float32, cosines first, and the queries' temperature float32 [T] if there is tuning:
    # 1 + scale * ln(1 + floor((position + 1) / floor))
    make_rope_angles: Callable[
        [int, float, RopeScaling | None, tuple[float, float] | None, Any],
        Callable[[Tensor], tuple[Tensor, Tensor | None]],
    ]
    # (slots_S, positions_S, page tables of all slots [G, N, B], block_size), the new token at `positions_S`
    decode_inputs: Callable[[Tensor, Tensor, Tensor, int], DecodeInputs]
    attention: ChooseAttention  # decided when a layer is bound
    # (logits_TE, top_k) -> (expert_Tk int64, weight_Tk float32): the best logits and their sigmoids
    route_sigmoid: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    # (logits_TE, top_k, renormalize): the best of the softmax (in float32), which may be made to add up to 1
    route_softmax: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]]
    make_linear: MakeLinear
    make_experts: MakeExperts
    # Of 4-bit weights, eight values in an int32 word and a scale per group of inputs (`linear/int4.py`):
    # (words_NW, scale_NG, bias_N | None, gated)
    make_int4_linear: Callable[[Tensor, Tensor, Tensor | None, bool], Linear]
    # (words and scales of gate_up [E, 2I, H], of down [E, H, I], weighting)
    make_int4_experts: Callable[[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Weighting], Experts]
    fuse_sigmoid_moe: Callable[[SigmoidMoEParts], Fused | None]  # None: the parts serve
    # From what another table on this device packed to what this one prefers, which may be the same object. The caller
    # drops the former, so that its memory returns.
    repack_linear: Callable[[Linear], Linear]
    repack_experts: Callable[[Experts], Experts]
    # Greedy tokens, by way of keys, see `head/torch.py`.
    # (head, x_SH, how many of its outputs are real, first id) -> key_S of the real outputs
    head_keys: Callable[[Linear, Tensor, int, int], Tensor]
    # (key_S, tokens_NL, slots_S, positions_S) -> tokens_S int64, -1 where not finite; written behind the positions
    keep_tokens: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    # The vision tower: n tiles of S x S pixels, p patches of a tile, A heads.
    # (tiles_n3SS uint8, patch) -> rows [n, p, 3 * patch * patch] of normalised pixels, patches row by row
    patch_rows: Callable[[Tensor, int], Tensor]
    # (rows_npH, class_H, positions_p1H) -> [n, p + 1, H]: the class token appended, positions added
    embed_patches: Callable[[Tensor, Tensor, Tensor], Tensor]
    # (side, head_dim, theta, device) -> cos_sin [p + 1, D] of a square of patches, then of the class token
    patch_angles: Callable[[int, int, float, Any], Tensor]
    # (qkv_npX, cos_sin_pD, A) -> [n, p, H]: bidirectional attention within each tile
    tile_attention: Callable[[Tensor, Tensor, int], Tensor]
