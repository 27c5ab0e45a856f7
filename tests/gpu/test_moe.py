"""Routed experts on a GPU, at widths of real models: few experts, so that the reference fits."""

from __future__ import annotations

import pytest
import torch

from remuda.kernels.linear.quantize import quantize_rows
from remuda.kernels.moe.triton import Experts, Int4Experts, route_sigmoid, route_softmax, router_logits
from remuda.kernels.moe.triton.int4 import widen
from remuda.kernels.moe.triton.library import experts_library
from remuda.kernels.moe.triton.sort import sort_rows
from remuda.kernels.moe.triton.tuning import SMALL_ROWS
from remuda.kernels.moe.triton.weights import pack
from remuda.kernels.table import Weighting
from tests.kernels.moe_checks import FP8, Checkpoint, by_rows, check_fused_block, checkpoint, error, normal, routes

CHECKED = 24  # tokens compared with the reference
BOUND = {torch.float32: 1e-5, torch.bfloat16: 1e-2, FP8: 6e-2}  # float8 activations cost about 4e-2


def to_gpu(weights: Checkpoint) -> Checkpoint:
    gate_up, down, scales = weights
    return gate_up.cuda(), down.cuda(), None if scales is None else (scales[0].cuda(), scales[1].cuda())


def copied(weights: Checkpoint) -> Checkpoint:
    return weights[0].clone(), weights[1].clone(), weights[2]


@pytest.mark.parametrize("weighting", Weighting)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8])
@pytest.mark.parametrize(("experts", "hidden", "width", "top_k"), [(4, 5120, 1024, 1), (8, 2048, 768, 4)])
def test_experts(experts: int, hidden: int, width: int, top_k: int, dtype: torch.dtype, weighting: Weighting) -> None:
    weights = to_gpu(checkpoint(experts, hidden, width, dtype))
    serve = Experts(*copied(weights), weighting)
    compute = torch.float32 if dtype is torch.float32 else torch.bfloat16
    for tokens in (2, 3, 8, 33, 127, 256, 1000, 4096):
        x_TH = normal(tokens, hidden, seed=tokens).to(compute).cuda()
        expert_Tk, weight_Tk = (t.cuda() for t in routes(tokens, top_k, experts))
        got = serve(x_TH, expert_Tk, weight_Tk)
        some = torch.arange(0, tokens, max(1, tokens // CHECKED), device="cuda")
        want = by_rows(weights, x_TH[some], expert_Tk[some], weight_Tk[some], weighting is Weighting.INPUT)
        if want.any():
            assert error(got[some], want) < BOUND[compute if tokens * top_k <= SMALL_ROWS else dtype], tokens
        assert not got[-1].any() and got.isfinite().all()


def test_experts_of_four_bits_in_a_graph() -> None:
    """The same as those of the numbers that the packed ones stand for."""
    experts, hidden, width = 4, 1024, 512
    made = torch.Generator("cuda").manual_seed(0)

    def packed(rows: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        words = torch.randint(-(1 << 31), 1 << 31, (experts, rows, inputs // 8), generator=made, device="cuda")
        scales = torch.rand(experts, rows, inputs // 128, generator=made, device="cuda").add_(0.5).mul_(0.01)
        return words.int(), scales.bfloat16()

    gate_up, down = packed(2 * width, hidden), packed(hidden, width)
    plain = [widen(*weight, torch.bfloat16).transpose(1, 2) for weight in (gate_up, down)]
    serve, want = Int4Experts(gate_up, down), Experts(*(weight.clone() for weight in plain))
    x_TH, (expert_Tk, weight_Tk) = normal(40, hidden, seed=1).bfloat16().cuda(), routes(40, 1, experts)
    inputs = x_TH, expert_Tk.cuda(), weight_Tk.cuda()
    serve(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got_TH = serve(*inputs)
    got_TH.zero_()
    graph.replay()
    assert error(got_TH, want(*inputs).float()) < BOUND[torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8])
def test_experts_by_torch(dtype: torch.dtype) -> None:
    weights = to_gpu(checkpoint(4, 512, 256, dtype))
    x_TH = normal(300, 512, seed=3).bfloat16().cuda()
    expert_Tk, weight_Tk = (t.cuda() for t in routes(300, 2, 4))
    for on_input in (True, False):
        want = by_rows(weights, x_TH, expert_Tk, weight_Tk, on_input)
        got = experts_library(pack(*copied(weights)), x_TH, expert_Tk, weight_Tk, on_input)
        assert error(got, want) < BOUND[dtype] and not got[-1].any()


@pytest.mark.parametrize("tokens", [4, 64])
def test_experts_in_a_graph_follow_their_inputs(tokens: int) -> None:
    weights = to_gpu(checkpoint(4, 512, 256, torch.bfloat16))
    serve = Experts(*copied(weights))
    x_TH, expert_Tk, weight_Tk = (
        torch.zeros(tokens, 512, dtype=torch.bfloat16, device="cuda"),
        torch.full((tokens, 1), -1, device="cuda"),
        torch.zeros(tokens, 1, device="cuda"),
    )
    serve(x_TH, expert_Tk, weight_Tk)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y_TH = serve(x_TH, expert_Tk, weight_Tk)
    for seed in range(3):
        x_TH.copy_(normal(tokens, 512, seed=seed))
        expert_Tk.copy_(torch.randint(-1, 4, (tokens, 1)))
        weight_Tk.copy_(torch.rand(tokens, 1))
        graph.replay()
        assert error(y_TH, by_rows(weights, x_TH, expert_Tk, weight_Tk, True)) < 1e-2


@pytest.mark.parametrize(("experts", "top_k"), [(128, 1), (16, 1), (128, 8), (60, 4)])
def test_routing(experts: int, top_k: int) -> None:
    logits = normal(100, experts).cuda()
    values, want = logits.topk(top_k)
    expert_Tk, weight_Tk = route_sigmoid(logits, top_k)
    assert torch.equal(expert_Tk, want)
    torch.testing.assert_close(weight_Tk, values.sigmoid())
    expert_Tk, weight_Tk = route_softmax(logits, top_k, True)
    assert torch.equal(expert_Tk, want)
    torch.testing.assert_close(weight_Tk, values.softmax(-1))


@pytest.mark.parametrize("tokens", [1, 16, 300])
def test_router_logits(tokens: int) -> None:
    x, router = normal(tokens, 5120).bfloat16().cuda(), normal(128, 5120, seed=1).bfloat16().cuda()
    assert error(router_logits(x, router), x.float() @ router.float().T) < 1e-3


@pytest.mark.parametrize(("rows", "experts", "block_m"), [(9, 128, 16), (5000, 128, 64), (70000, 60, 128)])
def test_sorting(rows: int, experts: int, block_m: int) -> None:
    expert = torch.randint(-1, experts, (rows, 1), device="cuda")
    order = sort_rows(expert, experts, block_m)
    key = torch.where(expert < 0, experts, expert).flatten()
    assert torch.equal(order.row_R.long(), key.argsort(stable=True))
    used = order.tiles_N3[order.tiles_N3[:, 0] >= 0]
    assert int((used[:, 2] - used[:, 1]).sum()) == rows and int((used[:, 2] - used[:, 1]).max()) <= block_m


@pytest.mark.parametrize("inputs", [768, 5120, 16384])
def test_quantizing(inputs: int) -> None:
    x = normal(64, inputs).bfloat16().cuda()
    q, scale = quantize_rows(x)
    torch.testing.assert_close(scale, x.float().abs().amax(1) / 448)
    assert error(q.float() * scale[:, None], x.float()) < 0.03


@pytest.mark.parametrize("pdl", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 8, 9, 300])
@pytest.mark.parametrize(("dtype", "shared_fp8"), [(torch.float32, False), (torch.bfloat16, False), (FP8, True)])
def test_fused_block(tokens: int, dtype: torch.dtype, shared_fp8: bool, pdl: bool) -> None:
    if pdl and torch.cuda.get_device_capability() < (9, 0):
        pdl = False
    for owned in ((0, 5), (1, 3)):
        found = check_fused_block("cuda", dtype, tokens, 5120, (1024, 1024), shared_fp8, owned, pdl)
        exact = dtype if dtype is not FP8 or tokens > SMALL_ROWS else torch.bfloat16
        assert found < BOUND[exact]
