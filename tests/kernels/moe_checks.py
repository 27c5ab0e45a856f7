"""Experts written out row by row, for tests of the Triton kernels in the interpreter and on a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F

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
