"""Experts written out row by row, for tests of the Triton kernels in the interpreter and on a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from remuda.kernels.table import SigmoidMoEParts

FP8 = torch.float8_e4m3fn
Checkpoint = tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def checkpoint(experts: int, hidden: int, width: int, dtype: torch.dtype) -> Checkpoint:
    """Weights as x @ W with outputs of about 1; float8 ones with factors of their output channels."""
    gate_up, down = normal(experts, hidden, 2 * width, seed=1), normal(experts, width, hidden, seed=2)
    gate_up, down = gate_up * hidden**-0.5, down * width**-0.5
    if dtype is not FP8:
        return gate_up.to(dtype), down.to(dtype), None
    scales = gate_up.abs().amax(1) / 448, down.abs().amax(1) / 448
    return (gate_up / scales[0][:, None]).to(FP8), (down / scales[1][:, None]).to(FP8), scales


def by_rows(
    weights: Checkpoint, x_TH: torch.Tensor, expert_Tk: torch.Tensor, weight_Tk: torch.Tensor, weigh_input: bool
) -> torch.Tensor:
    gate_up, down, scales = weights
    gate_up, down = gate_up.float(), down.float()
    if scales is not None:
        gate_up, down = gate_up * scales[0][:, None], down * scales[1][:, None]
    y_TH = torch.zeros(x_TH.shape, device=x_TH.device)
    for t, experts in enumerate(expert_Tk.tolist()):
        for choice, e in enumerate(experts):
            if e >= 0:
                weight = weight_Tk[t, choice]
                gate, up = (x_TH[t].float() * (weight if weigh_input else 1) @ gate_up[e]).chunk(2)
                y_TH[t] += F.silu(gate) * up @ down[e] * (1 if weigh_input else weight)
    return y_TH


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape and not got.isnan().any()
    return float((got.float() - want).norm() / want.norm())


def routes(tokens: int, top_k: int, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct experts per token; some choices, and all of the last token, are nobody's."""
    expert_Tk = normal(tokens, experts, seed=4).topk(top_k).indices
    expert_Tk[0, 0] = -1
    expert_Tk[-1] = -1
    return expert_Tk, normal(tokens, top_k, seed=5).sigmoid()


def check_fused_block(
    device: str, dtype: torch.dtype, tokens: int, hidden: int, widths: tuple[int, int], shared_fp8: bool = False,
    owned: tuple[int, int] = (0, 5), pdl: bool = False,
) -> float:  # fmt: skip
    """Llama 4's block in few kernels against its parts in float32; 5 experts, of which this rank has `owned`.

    ``dtype`` of the routed experts; `widths` of a routed and of the shared expert.
    """
    from remuda.kernels.linear.cuda import make_linear
    from remuda.kernels.moe.triton import Experts, fuse_sigmoid_moe

    compute = torch.float32 if dtype is torch.float32 else torch.bfloat16
    first, end = owned
    width, shared_width = widths
    gate_up, down, scales = checkpoint(5, hidden, width, dtype)
    here = (gate_up[first:end], down[first:end], scales and (scales[0][first:end], scales[1][first:end]))
    router = (normal(5, hidden, seed=7) * hidden**-0.5).to(compute)
    shared = checkpoint(1, hidden, shared_width, FP8 if shared_fp8 else compute)
    x_TH = normal(tokens, hidden, seed=8).to(compute)
    logit_Tk, expert_Tk = (x_TH.float() @ router.float().T).to(compute).max(-1, keepdim=True)
    local_Tk = torch.where((expert_Tk >= first) & (expert_Tk < end), expert_Tk - first, -1)
    want = by_rows(here, x_TH, local_Tk, logit_Tk.float().sigmoid(), True)
    want += by_rows(shared, x_TH, torch.zeros_like(expert_Tk), torch.ones(tokens, 1), True)

    def linear(weight_KN: torch.Tensor, scale_N: torch.Tensor | None, gated: bool) -> object:
        scale_N = None if scale_N is None else scale_N.to(device)
        return make_linear(weight_KN.T.contiguous().to(device), None, scale_N, gated, pdl)

    shared_scales = (None, None) if shared[2] is None else (shared[2][0][0], shared[2][1][0])
    experts = Experts(*(x.contiguous().to(device) for x in here[:2]), _on(device, here[2]), pdl=pdl)
    parts = SigmoidMoEParts(
        make_linear(router.to(device), pdl=pdl), experts, first,
        linear(shared[0][0], shared_scales[0], True), linear(shared[1][0], shared_scales[1], False), 1,
    )  # fmt: skip
    fused = fuse_sigmoid_moe(parts, pdl)
    assert fused is not None
    return error(fused(x_TH.to(device)).cpu(), want)


def _on(device: str, scales: tuple[torch.Tensor, torch.Tensor] | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    return None if scales is None else (scales[0].contiguous().to(device), scales[1].contiguous().to(device))
