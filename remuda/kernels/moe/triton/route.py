"""Which experts a token takes, on the device: nothing here waits for the host.

T tokens, E experts (of all ranks), k choices per token, H hidden. Equal logits go to the lowest id.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from remuda.kernels.device import early

SIGMOID, SOFTMAX, SOFTMAX_RENORMALIZED = 0, 1, 2
_FUSED_TOKENS = 16  # beyond that the router is a matrix product


def route_sigmoid(logits_TE: torch.Tensor, top_k: int, pdl: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Best experts by logit and the sigmoid (in float32) of their logits: (expert_Tk int64, weight_Tk float32)."""
    return _route(logits_TE, top_k, SIGMOID, pdl)


def route_softmax(
    logits_TE: torch.Tensor, top_k: int, renormalize: bool, pdl: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Best experts and their share of the softmax (float32) over all; renormalized: over the chosen ones."""
    return _route(logits_TE, top_k, SOFTMAX_RENORMALIZED if renormalize else SOFTMAX, pdl)


def route_and_quantize(
    logits_TE: torch.Tensor, x_TH: torch.Tensor, owned: range, quantize: bool, pdl: bool = False
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
    """(the expert of the best logit [T, 1] int64, counted from the first of `owned`, -1 for others; its sigmoid
    [T, 1]; and, to `quantize`, what `quantize_rows` makes of x), in one kernel."""
    (tokens, experts), hidden = logits_TE.shape, x_TH.shape[1]
    expert_T1 = torch.empty((tokens, 1), dtype=torch.int64, device=x_TH.device)
    weight_T1 = torch.empty((tokens, 1), dtype=torch.float32, device=x_TH.device)
    q_TH = torch.empty(x_TH.shape, dtype=torch.float8_e4m3fn, device=x_TH.device) if quantize else None
    scale_T = torch.empty(tokens, dtype=torch.float32, device=x_TH.device) if quantize else None
    _route_and_quantize[(tokens,)](
        logits_TE, x_TH, x_TH.stride(0), expert_T1, weight_T1, q_TH, scale_T, experts, hidden, owned.start, owned.stop,
        E=triton.next_power_of_2(experts), H=triton.next_power_of_2(hidden), PDL=pdl,
        num_warps=8 if quantize else 1, **early(pdl),
    )  # fmt: skip
    return expert_T1, weight_T1, None if q_TH is None or scale_T is None else (q_TH, scale_T)


def router_logits(x_TH: torch.Tensor, router_EH: torch.Tensor) -> torch.Tensor:
    """x @ router^T as float32 sums: a few tokens read the router's weight as a stream."""
    tokens, hidden = x_TH.shape
    experts = router_EH.shape[0]
    logits_TE = torch.empty((tokens, experts), dtype=torch.float32, device=x_TH.device)
    if tokens > _FUSED_TOKENS and x_TH.is_cuda and x_TH.dtype is not torch.float32:
        return torch.mm(x_TH, router_EH.T, out_dtype=torch.float32)
    block_k = min(1024, triton.next_power_of_2(hidden))
    _router_kernel[(experts, tokens)](
        x_TH, x_TH.stride(0), router_EH, logits_TE, experts, hidden, BLOCK_K=block_k, num_warps=4
    )
    return logits_TE


def _route(logits_TE: torch.Tensor, top_k: int, kind: int, pdl: bool) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, experts = logits_TE.shape
    expert_Tk = torch.empty((tokens, top_k), dtype=torch.int64, device=logits_TE.device)
    weight_Tk = torch.empty((tokens, top_k), dtype=torch.float32, device=logits_TE.device)
    if tokens:
        block_e = triton.next_power_of_2(experts)
        _route_kernel[(tokens,)](
            logits_TE, logits_TE.stride(0), expert_Tk, weight_Tk, experts,
            TOP_K=top_k, KIND=kind, BLOCK_E=block_e, BLOCK_TOP=triton.next_power_of_2(top_k), PDL=pdl,
            num_warps=1, **early(pdl),
        )  # fmt: skip
    return expert_Tk, weight_Tk


@triton.jit
def _router_kernel(x, x_stride, router, logits, experts, hidden, BLOCK_K: tl.constexpr):
    """One logit per program: its row of the router's weight, read once, against one token."""
    expert, token = tl.program_id(0), tl.program_id(1)
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_K,), tl.float32)
    for start in tl.range(0, hidden, BLOCK_K):
        inside = start + k < hidden
        x_K = tl.load(x + token * x_stride + start + k, mask=inside, other=0.0).to(tl.float32)
        total += x_K * tl.load(router + expert * hidden + start + k, mask=inside, other=0.0).to(tl.float32)
    tl.store(logits + token * experts + expert, tl.sum(total))


@triton.jit
def _route_kernel(
    logits, logits_stride, expert_out, weight_out, experts,
    TOP_K: tl.constexpr, KIND: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_TOP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token per program: k times the best of what is left, which the register of one warp holds."""
    token = tl.program_id(0)
    e = tl.arange(0, BLOCK_E)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    left = tl.load(logits + token * logits_stride + e, mask=e < experts, other=float("-inf")).to(tl.float32)
    best = tl.max(left, 0)
    total = tl.sum(tl.exp(left - best), 0)
    choice = tl.arange(0, BLOCK_TOP)
    value_k = tl.full((BLOCK_TOP,), float("-inf"), tl.float32)
    expert_k = tl.zeros((BLOCK_TOP,), tl.int32)
    for i in tl.static_range(TOP_K):
        value, index = tl.max(left, 0, return_indices=True, return_indices_tie_break_left=True)
        value_k = tl.where(choice == i, value, value_k)
        expert_k = tl.where(choice == i, index, expert_k)
        left = tl.where(e == index, float("-inf"), left)
    if KIND == 0:
        weight_k = 1.0 / (1.0 + tl.exp(-value_k))
    else:
        weight_k = tl.exp(value_k - best)
        weight_k = weight_k / (tl.sum(weight_k, 0) if KIND == 2 else total)
    tl.store(expert_out + token * TOP_K + choice, expert_k.to(tl.int64), mask=choice < TOP_K)
    tl.store(weight_out + token * TOP_K + choice, weight_k, mask=choice < TOP_K)


@triton.jit
def best_expert(logits, token, experts, first, end, E: tl.constexpr):
    """(the expert of a token's largest logit, counted from `first`, -1 past `end` or before; the logit's sigmoid)."""
    e = tl.arange(0, E)
    logit_E = tl.load(logits + token * experts + e, mask=e < experts, other=float("-inf")).to(tl.float32)
    best, index = tl.max(logit_E, 0, return_indices=True, return_indices_tie_break_left=True)
    own = tl.where((index >= first) & (index < end), index - first, -1)
    return own.to(tl.int64), 1.0 / (1.0 + tl.exp(-best))


@triton.jit
def _route_and_quantize(
    logits, x, x_stride, expert_out, weight_out, q, scale_out, experts, hidden, first, end,
    E: tl.constexpr, H: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    e, weight = best_expert(logits, token, experts, first, end, E)
    tl.store(expert_out + token, e)
    tl.store(weight_out + token, weight)
    if q is not None:
        h = tl.arange(0, H)
        x_H = tl.load(x + token * x_stride + h, mask=h < hidden, other=0.0).to(tl.float32)
        scale = tl.maximum(tl.max(tl.abs(x_H), 0), 1e-12) / 448.0
        tl.store(scale_out + token, scale)
        q_H = tl.minimum(tl.maximum(x_H / scale, -448.0), 448.0)
        tl.store(q + token * hidden + h, q_H.to(q.dtype.element_ty), mask=h < hidden)
