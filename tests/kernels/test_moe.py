"""Routing and routed experts against naive loops."""

from __future__ import annotations

import pytest
import torch

from remuda.kernels.table import Weighting
from tests.kernels.conftest import Served, normal
from tests.kernels.naive import moe as naive

EXPERTS = 5


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 4, 1), (9, 32, 1), (5, 16, 3), (2, 2, 2)])
def test_routing(served: Served, tokens: int, experts: int, top_k: int) -> None:
    logits_TE = torch.stack([torch.randperm(experts) for _ in range(tokens)]).float() / 4 - 2  # no two alike
    kernels, given = served.kernels, logits_TE.to(served.dtype)
    for (expert_Tk, weight_Tk), (experts_of, weights_of) in (
        (kernels.route_sigmoid(given, top_k), naive.route_sigmoid(logits_TE, top_k)),
        (kernels.route_softmax(given, top_k, True), naive.route_softmax(logits_TE, top_k, True)),
        (kernels.route_softmax(given, top_k, False), naive.route_softmax(logits_TE, top_k, False)),
    ):
        assert expert_Tk.dtype is torch.int64 and weight_Tk.dtype is torch.float32
        assert expert_Tk.tolist() == experts_of
        torch.testing.assert_close(weight_Tk.double(), torch.tensor(weights_of).double())


@pytest.mark.parametrize("weighting", Weighting)
@pytest.mark.parametrize("tokens", [1, 2, 9, 40])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("stored", ["plain", "scaled", "float8"])
def test_experts(served: Served, tokens: int, top_k: int, stored: str, weighting: Weighting) -> None:
    kept = torch.float8_e4m3fn if stored == "float8" else served.dtype
    gate_up, down = (
        (normal(EXPERTS, *shape, seed=i) * 0.2).to(torch.float8_e4m3fn if stored == "float8" else torch.bfloat16)
        for i, shape in enumerate(((16, 24), (12, 16)))
    )
    scales = None if stored == "plain" else (normal(EXPERTS, 24, seed=3).abs(), normal(EXPERTS, 16, seed=4).abs())
    x_TH, weight_Tk = normal(tokens, 16, seed=2), normal(tokens, top_k, seed=5).abs()
    expert_Tk, _ = naive.route_sigmoid(normal(tokens, EXPERTS, seed=6), top_k)
    chosen_Tk = torch.tensor(expert_Tk)
    chosen_Tk[chosen_Tk == 3] = -1  # lives on another rank
    made = served.kernels.make_experts(gate_up.to(kept), down.to(kept), scales, weighting)
    expected = naive.experts(x_TH, chosen_Tk, weight_Tk, gate_up.float(), down.float(), scales, weighting)
    served.close(made(x_TH.to(served.dtype), chosen_Tk, weight_Tk), expected)
