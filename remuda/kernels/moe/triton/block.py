"""Llama 4's whole expert block. A few tokens take the router, then a kernel for the first halves of the shared
and the routed experts and one for both second halves. More take as few as the library's products leave.

Nobody tells a few tokens' programs which expert they take: each finds out from the logits, which costs less than a
kernel that says so. T tokens, H hidden, E experts (of all ranks), I and S intermediate sizes of a routed and of the
shared expert on this rank.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from remuda.kernels.device import early
from remuda.kernels.linear.cuda import Float8Linear, Linear
from remuda.kernels.linear.triton import dot_row, prefetch_tile, prefetched_lines
from remuda.kernels.moe.triton.experts import Experts
from remuda.kernels.moe.triton.route import best_expert, route_and_quantize
from remuda.kernels.moe.triton.small import Stream, dot_rows, prefetch_rows
from remuda.kernels.moe.triton.tuning import SMALL_ROWS, small_streams
from remuda.kernels.table import SigmoidMoEParts

AnyLinear = Linear | Float8Linear
_SHARED_OUTPUTS = 4  # of the shared expert, that a program makes


def fuse_sigmoid_moe(parts: SigmoidMoEParts, pdl: bool = False) -> FusedBlock | None:
    """What serves the block instead of its parts; None where these kernels do not read their form."""
    router, experts, gate_up, down = parts.router, parts.experts, parts.gate_up, parts.down
    if not (isinstance(router, Linear) and isinstance(gate_up, AnyLinear) and isinstance(down, AnyLinear)):
        return None
    if not (isinstance(experts, Experts) and experts.weigh_input and parts.top_k == 1):
        return None
    if gate_up.bias_N is not None or down.bias_N is not None or router.bias_N is not None:
        return None
    return FusedBlock(router, experts, parts.first_expert, gate_up, down, pdl)


class FusedBlock:
    """See `Fused` in the kernel table. `first`: of all experts, that this rank holds."""

    def __init__(
        self, router: Linear, experts: Experts, first: int, gate_up: AnyLinear, down: AnyLinear, pdl: bool
    ) -> None:
        self._router, self._gate_up, self._down = router, gate_up, down
        self._experts = experts
        self._owned = range(first, first + experts.count)
        self._weights = experts.weights
        self._streams = small_streams(self._weights.gate_up_EJH.element_size())
        self._pdl = pdl

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        if not len(x_TH):
            return torch.empty_like(x_TH)
        logits_TE = self._router(x_TH)
        if len(x_TH) > SMALL_ROWS:
            return self._many(x_TH, logits_TE)
        # One token's shared expert is read by the programs that need not know the logits; several rows are a product.
        shared_TS = self._gate_up(x_TH) if len(x_TH) > 1 else None
        routed_TI, shared_TS = self._first_halves(x_TH, logits_TE, shared_TS, self._streams[0])
        return self._second_halves(x_TH, logits_TE, routed_TI, shared_TS, self._streams[1])

    def _many(self, x_TH: torch.Tensor, logits_TE: torch.Tensor) -> torch.Tensor:
        experts = self._experts
        expert_T1, weight_T1, quantized = route_and_quantize(logits_TE, x_TH, self._owned, experts.quantizes, self._pdl)
        y_TH = experts(x_TH, expert_T1, weight_T1, quantized)
        shared_TS = self._gate_up(x_TH)
        if isinstance(self._down, Linear):
            return y_TH.addmm_(shared_TS, self._down.weight_NK.t())
        return y_TH.add_(self._down(shared_TS))

    def _first_halves(
        self, x_TH: torch.Tensor, logits_TE: torch.Tensor, shared_TS: torch.Tensor | None, stream: Stream
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """silu(gate) * up of each token's expert [T, I], whose rows of other ranks' experts are not written, and of the
        shared one, if that is not there yet."""
        weights, (tokens, hidden), experts = self._weights, x_TH.shape, logits_TE.shape[1]
        width, shared_weight = weights.down_EHI.shape[2], self._gate_up.weight_NK
        shared_width, shared_tiles = len(shared_weight) // 2, 0
        routed_TI = torch.empty((tokens, width), dtype=x_TH.dtype, device=x_TH.device)
        if shared_TS is None:
            shared_TS = torch.empty((1, shared_width), dtype=x_TH.dtype, device=x_TH.device)
            shared_tiles = triton.cdiv(shared_width, _SHARED_OUTPUTS)
        _gate_ups[(shared_tiles + triton.cdiv(2 * width, stream.block_n), tokens)](
            x_TH, x_TH.stride(0), weights.gate_up_EJH, weights.gate_up_scale_EJ, logits_TE, routed_TI, hidden, width,
            experts, self._owned.start, self._owned.stop, shared_weight, _scale(self._gate_up), shared_TS,
            shared_width, shared_tiles, E=triton.next_power_of_2(experts), BLOCK_N=stream.block_n,
            BLOCK_K=stream.block_k, STAGES=stream.num_stages, N=_SHARED_OUTPUTS,
            K=32 * 16 // shared_weight.element_size() * stream.num_warps, LINES=prefetched_lines(shared_weight),
            BYTES=shared_weight.element_size(), PDL=self._pdl, num_warps=stream.num_warps, **early(self._pdl),
        )  # fmt: skip
        return routed_TI, shared_TS

    def _second_halves(
        self, x_TH: torch.Tensor, logits_TE: torch.Tensor, routed_TI: torch.Tensor, shared_TS: torch.Tensor,
        stream: Stream,
    ) -> torch.Tensor:  # fmt: skip
        weights, (tokens, hidden), experts = self._weights, x_TH.shape, logits_TE.shape[1]
        shared_HS = self._down.weight_NK
        y_TH = torch.empty((tokens, hidden), dtype=x_TH.dtype, device=x_TH.device)
        _both_downs[(tokens, triton.cdiv(hidden, stream.block_n))](
            routed_TI, weights.down_EHI, weights.down_scale_EH, shared_TS, shared_HS, _scale(self._down), logits_TE,
            y_TH, hidden, routed_TI.shape[1], shared_TS.shape[1], experts, self._owned.start, self._owned.stop,
            E=triton.next_power_of_2(experts), BLOCK_N=stream.block_n, BLOCK_K=stream.block_k,
            STAGES=stream.num_stages, PDL=self._pdl, LINES=prefetched_lines(weights.down_EHI),
            SHARED_LINES=prefetched_lines(shared_HS), num_warps=stream.num_warps, **early(self._pdl),
        )  # fmt: skip
        return y_TH


def _scale(linear: AnyLinear) -> torch.Tensor | None:
    return linear.scale_N if isinstance(linear, Float8Linear) else None


@triton.jit
def _silu_mul(gate, up):
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def _shared_gate_up(
    x, weight, scale, h, n, hidden, width, N: tl.constexpr, K: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """Columns `n` of one token's silu(gate) * up."""
    inside_N1, up = (n < width)[:, None], weight + width.to(tl.int64) * hidden
    place_N1 = n.to(tl.int64)[:, None] * hidden
    gate_N = dot_row(x, weight + place_N1, inside_N1, 0, hidden, N, K, STAGES)
    up_N = dot_row(x, up + place_N1, inside_N1, 0, hidden, N, K, STAGES)
    if scale is not None:
        gate_N *= tl.load(scale + n, mask=n < width, other=0.0)
        up_N *= tl.load(scale + width + n, mask=n < width, other=0.0)
    tl.store(h + n, _silu_mul(gate_N, up_N).to(h.dtype.element_ty), mask=n < width)


@triton.jit
def _routed_gate_up(
    x, weight, scale, factor, h, tile, hidden, width,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """BLOCK_N / 2 columns of silu(gate) * up of `factor` * x."""
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    y_N = factor * dot_rows(x, weight, scale, 2 * width, hidden, n, BLOCK_N, BLOCK_K, STAGES)
    gate, up = tl.split(tl.reshape(y_N, (BLOCK_N // 2, 2)))
    column = tile * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    tl.store(h + column, _silu_mul(gate, up).to(h.dtype.element_ty), mask=column < width)


@triton.jit
def _gate_ups(
    x, x_stride, weight, scale, logits, h, hidden, width, experts, first, end,
    shared_weight, shared_scale, shared_h, shared_width, shared_tiles,
    E: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr, LINES: tl.constexpr, BYTES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The first programs are the shared expert's, of one token if there are any; the others the tokens' experts'."""
    tile, token = tl.program_id(0), tl.program_id(1)
    n = tile * N + tl.arange(0, N)
    if PDL:
        if tile < shared_tiles:
            up = shared_weight + shared_width.to(tl.int64) * hidden
            prefetch_tile(shared_weight, n, 0, shared_width, hidden, LINES, BYTES)
            prefetch_tile(up, n, 0, shared_width, hidden, LINES, BYTES)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()  # not before: _both_downs reads the logits while it waits
    if tile < shared_tiles:
        _shared_gate_up(x, shared_weight, shared_scale, shared_h, n, hidden, shared_width, N, K, STAGES)
    else:
        e, factor = best_expert(logits, token, experts, first, end, E)
        if e >= 0:  # nobody reads other rows of h
            own_weight = weight + e * (2 * width) * hidden
            own_scale = None if scale is None else scale + e * (2 * width)
            _routed_gate_up(
                x + token * x_stride, own_weight, own_scale, factor, h + token * width, tile - shared_tiles, hidden,
                width, BLOCK_N, BLOCK_K, STAGES,
            )  # fmt: skip


@triton.jit
def _both_downs(
    routed, weight, scale, shared, shared_weight, shared_scale, logits, y, hidden, width, shared_width,
    experts, first, end,
    E: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
    LINES: tl.constexpr, SHARED_LINES: tl.constexpr,
):  # fmt: skip
    """y[token] = down of its expert + down of the shared one, for BLOCK_N columns."""
    token = tl.program_id(0)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    if PDL:  # the logits are older than _gate_ups, which waited for them before it let this kernel start
        tl.extra.cuda.gdc_launch_dependents()
        prefetch_rows(shared_weight, n, hidden, shared_width, SHARED_LINES)
    e, _ = best_expert(logits, token, experts, first, end, E)
    weight += e * hidden * width
    if PDL:
        if e >= 0:
            prefetch_rows(weight, n, hidden, width, LINES)
        tl.extra.cuda.gdc_wait()
    y_N = dot_rows(
        shared + token * shared_width, shared_weight, shared_scale, hidden, shared_width, n, BLOCK_N, BLOCK_K, STAGES
    )
    if e >= 0:
        own_scale = None if scale is None else scale + e * hidden
        y_N += dot_rows(routed + token * width, weight, own_scale, hidden, width, n, BLOCK_N, BLOCK_K, STAGES)
    tl.store(y + token * hidden + n, y_N.to(y.dtype.element_ty), mask=n < hidden)
