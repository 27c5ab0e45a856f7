"""The Triton kernels of experts, in Triton's interpreter, against experts written out row by row. Small sizes.

The interpreter rounds bfloat16 and float8 towards zero, so errors here are about twice those of a GPU (tests/gpu).
"""

from __future__ import annotations

import pytest
import torch

from remuda.kernels.linear.quantize import quantize_rows
from remuda.kernels.moe.triton import Experts
from remuda.kernels.moe.triton.grouped import Tile, experts_grouped
from remuda.kernels.moe.triton.route import route_sigmoid, route_softmax, router_logits
from remuda.kernels.moe.triton.small import Stream, experts_small
from remuda.kernels.moe.triton.sort import sort_rows
from remuda.kernels.moe.triton.weights import ExpertWeights, pack
from tests.kernels import interpreter  # noqa: F401
from tests.kernels.moe_checks import FP8, by_rows, check_fused_block, checkpoint, error, normal, routes

TILE = Tile(16, 32, 32, num_stages=2)
TMA = Tile(16, 32, 32, num_stages=2, tma=True)


def test_packing_stays_in_place_and_alternates_gate_and_up() -> None:
    for transposed in (False, True):
        gate_up, down, _ = checkpoint(3, 32, 16, torch.bfloat16)
        if transposed:  # views of [out, in] matrices, as per-expert checkpoints have them
            gate_up, down = (w.transpose(1, 2).contiguous().transpose(1, 2) for w in (gate_up, down))
        want_gate_up, want_down, place = gate_up.clone(), down.clone(), (gate_up.data_ptr(), down.data_ptr())
        packed = pack(gate_up, down)
        assert (packed.gate_up_EJH.data_ptr(), packed.down_EHI.data_ptr()) == place
        assert torch.equal(packed.gate_up_EJH[:, 0::2], want_gate_up[..., :16].transpose(1, 2))
        assert torch.equal(packed.gate_up_EJH[:, 1::2], want_gate_up[..., 16:].transpose(1, 2))
        assert torch.equal(packed.down_EHI, want_down.transpose(1, 2))
        assert packed.nbytes_per_expert == 3 * 32 * 16 * 2


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("experts", [16, 21])
def test_routing(top_k: int, experts: int) -> None:
    logits = normal(5, experts)
    logits[2] = 1.5  # equal: the lowest ids win
    expert_Tk, weight_Tk = route_sigmoid(logits, top_k)
    values, want = logits.topk(top_k)
    want[2] = torch.arange(top_k)
    assert torch.equal(expert_Tk, want)
    torch.testing.assert_close(weight_Tk, values.sigmoid())
    for renormalize in (False, True):
        expert_Tk, weight_Tk = route_softmax(logits, top_k, renormalize)
        share = logits.softmax(-1).gather(1, want)
        assert torch.equal(expert_Tk, want)
        torch.testing.assert_close(weight_Tk, share / share.sum(-1, keepdim=True) if renormalize else share)


def test_router_logits_are_float32_sums() -> None:
    x, router = normal(3, 80).bfloat16(), normal(6, 80, seed=1).bfloat16()
    torch.testing.assert_close(router_logits(x, router), x.float() @ router.float().T)


@pytest.mark.parametrize(("rows", "experts", "block_m"), [(1, 4, 16), (7, 4, 2), (50, 4, 16), (70, 37, 4)])
def test_rows_are_sorted_and_tiles_cover_each_place_once(rows: int, experts: int, block_m: int) -> None:
    expert = torch.randint(-1, experts, (rows, 1), generator=torch.Generator().manual_seed(rows))
    order = sort_rows(expert, experts, block_m)
    key = torch.where(expert < 0, experts, expert).flatten()
    assert torch.equal(order.row_R.long(), key.argsort(stable=True))
    assert torch.equal(order.end_E.long(), torch.stack([(key <= e).sum() for e in range(experts)]))
    sorted_key, covered = key[order.row_R.long()], []
    for e, start, end in order.tiles_N3.tolist():
        if e >= 0:
            assert 0 < end - start <= block_m and (sorted_key[start:end] == e).all()
            covered += range(start, end)
    assert covered == list(range(rows))


@pytest.mark.parametrize("weigh_input", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1.5e-2), (FP8, 1.5e-2)])
@pytest.mark.parametrize(("tokens", "top_k"), [(3, 1), (3, 2)])
def test_few_tokens(tokens: int, top_k: int, dtype: torch.dtype, bound: float, weigh_input: bool) -> None:
    weights = checkpoint(3, 48, 40, dtype)
    x_TH = normal(tokens, 48, seed=3).to(torch.float32 if dtype is torch.float32 else torch.bfloat16)
    expert_Tk, weight_Tk = routes(tokens, top_k, 3)
    want = by_rows(weights, x_TH, expert_Tk, weight_Tk, weigh_input)
    packed = pack(*weights)
    got = experts_small(packed, x_TH, expert_Tk, weight_Tk, weigh_input, Stream(16, 32), Stream(8, 64, num_stages=2))
    assert error(got, want) < bound and not got[-1].any()


@pytest.mark.parametrize("weigh_input", [True, False])
@pytest.mark.parametrize(
    ("dtype", "quantize", "bound"),
    [(torch.float32, False, 1e-5), (torch.bfloat16, False, 1.5e-2), (FP8, False, 1.5e-2), (FP8, True, 0.13)],
)
@pytest.mark.parametrize(("top_k", "tile"), [(1, TILE), (2, TMA)])
def test_many_tokens(
    top_k: int, tile: Tile, dtype: torch.dtype, quantize: bool, bound: float, weigh_input: bool
) -> None:
    weights = checkpoint(3, 48, 32, dtype)
    x_TH = normal(21, 48, seed=3).to(torch.float32 if dtype is torch.float32 else torch.bfloat16)
    expert_Tk, weight_Tk = routes(21, top_k, 3)
    want = by_rows(weights, x_TH, expert_Tk, weight_Tk, weigh_input)
    got = experts_grouped(pack(*weights), x_TH, expert_Tk, weight_Tk, weigh_input, tile, tile, quantize)
    assert error(got, want) < bound and not got[-1].any()


@pytest.mark.parametrize("tokens", [0, 1, 8, 9])
def test_experts_take_any_number_of_tokens(tokens: int) -> None:
    weights = checkpoint(2, 32, 32, torch.float32)
    want = (weights[0].clone(), weights[1].clone(), None)
    experts = Experts(*weights)
    x_TH, expert_Tk, weight_Tk = normal(tokens, 32), torch.arange(tokens)[:, None] % 2, normal(tokens, 1).sigmoid()
    assert isinstance(experts.weights, ExpertWeights)
    torch.testing.assert_close(
        experts(x_TH, expert_Tk, weight_Tk), by_rows(want, x_TH, expert_Tk, weight_Tk, True), rtol=1e-4, atol=1e-5
    )


def test_rows_are_quantized_to_their_largest() -> None:
    x = normal(3, 100) * torch.tensor([[1e-3], [1.0], [0.0]])
    q, scale = quantize_rows(x)
    torch.testing.assert_close(scale[:2], x[:2].abs().amax(1) / 448)
    assert q[:2].float().abs().amax(1).tolist() == [448, 448] and not q[2].float().any()
    assert error(q.float() * scale[:, None], x) < 0.06


@pytest.mark.parametrize("tokens", [1, 3, 11])
@pytest.mark.parametrize(
    ("dtype", "shared_fp8", "owned"),
    [(torch.float32, False, (0, 5)), (torch.bfloat16, False, (1, 4)), (FP8, False, (0, 5)), (FP8, True, (2, 3))],
)
def test_fused_block(tokens: int, dtype: torch.dtype, shared_fp8: bool, owned: tuple[int, int]) -> None:
    bound = 1e-5 if dtype is torch.float32 else 1e-1 if dtype is FP8 and tokens > 8 else 2e-2
    assert check_fused_block("cpu", dtype, tokens, 80, (48, 40), shared_fp8, owned) < bound
