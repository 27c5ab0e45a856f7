"""Llama 4's whole expert block. A few tokens take three kernels: router beside the shared expert's first half, the
routed experts' first half, both second halves. More take as few as the library's products leave.

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
from remuda.kernels.linear.triton import dot_row, prefetch_tile, prefetched_lines, row_tile
from remuda.kernels.moe.triton.experts import Experts
from remuda.kernels.moe.triton.route import best_expert, route_and_quantize
from remuda.kernels.moe.triton.small import Stream, dot_rows, prefetch_rows
from remuda.kernels.moe.triton.tuning import SMALL_ROWS, small_streams
from remuda.kernels.table import SigmoidMoEParts

AnyLinear = Linear | Float8Linear


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
        if len(x_TH) == 1:
            logits_TE, shared_TS = self._first_halves(x_TH)
        else:
            logits_TE, shared_TS = self._router(x_TH), self._gate_up(x_TH)
        if len(x_TH) > SMALL_ROWS:
            return self._many(x_TH, logits_TE, shared_TS)
        routed_TI = self._routed(x_TH, logits_TE, self._streams[0])
        return self._second_halves(x_TH, logits_TE, routed_TI, shared_TS, self._streams[1])

    def _many(self, x_TH: torch.Tensor, logits_TE: torch.Tensor, shared_TS: torch.Tensor) -> torch.Tensor:
        experts = self._experts
        expert_T1, weight_T1, quantized = route_and_quantize(logits_TE, x_TH, self._owned, experts.quantizes, self._pdl)
        y_TH = experts(x_TH, expert_T1, weight_T1, quantized)
        if isinstance(self._down, Linear):
            return y_TH.addmm_(shared_TS, self._down.weight_NK.t())
        return y_TH.add_(self._down(shared_TS))

    def _first_halves(self, x_1H: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits_1E, the shared expert's silu(gate) * up), of one token."""
        router_EH, weight, hidden = self._router.weight_NK, self._gate_up.weight_NK, x_1H.shape[1]
        experts, width = len(router_EH), len(weight) // 2
        logits_1E, shared_1S = (torch.empty(1, size, dtype=x_1H.dtype, device=x_1H.device) for size in (experts, width))
        tile = row_tile(hidden, weight.dtype)
        grid = (triton.cdiv(experts, tile.outputs) + triton.cdiv(width, tile.outputs),)
        _router_and_gate_up[grid](
            x_1H, router_EH, weight, _scale(self._gate_up), logits_1E, shared_1S, hidden, experts, width,
            N=tile.outputs, K=tile.inputs, STAGES=tile.stages, PDL=self._pdl,
            ROUTER_LINES=prefetched_lines(router_EH), LINES=prefetched_lines(weight),
            ROUTER_BYTES=router_EH.element_size(), BYTES=weight.element_size(),
            num_warps=tile.warps, **early(self._pdl),
        )  # fmt: skip
        return logits_1E, shared_1S

    def _routed(self, x_TH: torch.Tensor, logits_TE: torch.Tensor, stream: Stream) -> torch.Tensor:
        """silu(gate) * up of each token's expert [T, I]; rows whose expert is another rank's are not written."""
        weights, (tokens, hidden), experts = self._weights, x_TH.shape, logits_TE.shape[1]
        width = weights.down_EHI.shape[2]
        routed_TI = torch.empty((tokens, width), dtype=x_TH.dtype, device=x_TH.device)
        _routed_gate_up[(triton.cdiv(2 * width, stream.block_n), tokens)](
            x_TH, x_TH.stride(0), weights.gate_up_EJH, weights.gate_up_scale_EJ, logits_TE, routed_TI, hidden, width,
            experts, self._owned.start, self._owned.stop, E=triton.next_power_of_2(experts),
            BLOCK_N=stream.block_n, BLOCK_K=stream.block_k, STAGES=stream.num_stages, PDL=self._pdl,
            num_warps=stream.num_warps, **early(self._pdl),
        )  # fmt: skip
        return routed_TI

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
def _router_and_gate_up(
    x, router, weight, scale, logits, h, hidden, experts, width,
    N: tl.constexpr, K: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
    ROUTER_LINES: tl.constexpr, LINES: tl.constexpr, ROUTER_BYTES: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Of one token: N logits, or N columns of the shared expert's silu(gate) * up."""
    tile, router_tiles = tl.program_id(0), tl.cdiv(experts, N)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    if tile < router_tiles:
        n = tile * N + tl.arange(0, N)
        if PDL:
            prefetch_tile(router, n, 0, experts, hidden, ROUTER_LINES, ROUTER_BYTES)
            tl.extra.cuda.gdc_wait()
        rows_N1 = router + n.to(tl.int64)[:, None] * hidden
        logit_N = dot_row(x, rows_N1, (n < experts)[:, None], 0, hidden, N, K, STAGES)
        tl.store(logits + n, logit_N.to(logits.dtype.element_ty), mask=n < experts)
    else:
        n = (tile - router_tiles) * N + tl.arange(0, N)
        inside_N1, up = (n < width)[:, None], weight + width.to(tl.int64) * hidden
        if PDL:
            prefetch_tile(weight, n, 0, width, hidden, LINES, BYTES)
            prefetch_tile(up, n, 0, width, hidden, LINES, BYTES)
            tl.extra.cuda.gdc_wait()
        place_N1 = n.to(tl.int64)[:, None] * hidden
        gate_N = dot_row(x, weight + place_N1, inside_N1, 0, hidden, N, K, STAGES)
        up_N = dot_row(x, up + place_N1, inside_N1, 0, hidden, N, K, STAGES)
        if scale is not None:
            gate_N *= tl.load(scale + n, mask=n < width, other=0.0)
            up_N *= tl.load(scale + width + n, mask=n < width, other=0.0)
        tl.store(h + n, _silu_mul(gate_N, up_N).to(h.dtype.element_ty), mask=n < width)


@triton.jit
def _routed_gate_up(
    x, x_stride, weight, scale, logits, h, hidden, width, experts, first, end,
    E: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """h[token] = silu(gate) * up of sigmoid(logit) * x, for BLOCK_N / 2 columns."""
    token = tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()  # not before: _both_downs reads the logits while it waits
    e, factor = best_expert(logits, token, experts, first, end, E)
    if e < 0:
        return  # nobody reads this row of h
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    weight += e * (2 * width) * hidden
    if scale is not None:
        scale += e * (2 * width)
    y_N = factor * dot_rows(x + token * x_stride, weight, scale, 2 * width, hidden, n, BLOCK_N, BLOCK_K, STAGES)
    gate, up = tl.split(tl.reshape(y_N, (BLOCK_N // 2, 2)))
    column = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    tl.store(h + token * width + column, _silu_mul(gate, up).to(h.dtype.element_ty), mask=column < width)


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
    if PDL:  # the logits are older than _routed_gate_up, which waited for them before it let this kernel start
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
