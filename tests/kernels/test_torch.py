"""The torch kernels against definitions written out position by position. Small sizes, every branch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from remuda.kernels.activation import torch as activation
from remuda.kernels.attention import torch as attention
from remuda.kernels.linear import torch as linear
from remuda.kernels.moe import torch as moe
from remuda.kernels.norm import torch as norm
from remuda.kernels.rotary import torch as rotary
from remuda.kernels.table import HeadLayout, HeadNorm


@dataclass
class Batch:
    """Rows given as (context, queries), each with its own shuffled pages; one group."""

    rows: list[tuple[int, int]]
    block_size: int
    pages: int = 64
    plans: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        free = torch.randperm(self.pages - 1, generator=torch.Generator().manual_seed(0)).add(1).tolist()
        width = max(-(-context // self.block_size) for context, _ in self.rows)
        self.table = [[free.pop() for _ in range(-(-context // self.block_size))] for context, _ in self.rows]
        self.tables_GSB = torch.tensor([[row + [0] * (width - len(row)) for row in self.table]], dtype=torch.int32)
        self.context_S = torch.tensor([context for context, _ in self.rows], dtype=torch.int32)
        counts = [queries for _, queries in self.rows]
        self.query_start_S1 = torch.tensor([sum(counts[:i]) for i in range(len(counts) + 1)], dtype=torch.int32)
        self.num_decodes = next((i for i, count in enumerate(counts) if count > 1), len(counts))
        slots = [
            self.table[s][p // self.block_size] * self.block_size + p % self.block_size
            for s, (context, queries) in enumerate(self.rows)
            for p in range(context - queries, context)
        ]
        self.slots_GT = torch.tensor([slots])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ROWS = {
    "one decode": [(1, 1)],
    "decodes": [(1, 1), (7, 1), (8, 1), (9, 1), (33, 1)],
    "prompts": [(5, 5), (20, 9), (16, 3)],
    "mixed": [(17, 1), (16, 1), (40, 40), (24, 8), (25, 2), (9, 9)],
    "a piece of one token after a prompt": [(12, 12), (30, 1)],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(
    ("chunk", "window"), [(None, None), (8, None), (13, None), (None, 1), (None, 8), (None, 13), (None, 99)]
)
@pytest.mark.parametrize("block_size", [4, 5])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3), (4, 1)])
def test_paged_attention(
    rows: list[tuple[int, int]], chunk: int | None, window: int | None, block_size: int, heads: int, kv_heads: int
) -> None:
    batch, width = Batch(rows, block_size), 8
    k, v = normal(64, kv_heads, block_size, width, seed=1), normal(64, kv_heads, block_size, width, seed=2)
    q_TQD = normal(sum(queries for _, queries in rows), heads, width, seed=3)
    got = attention.paged_attention(q_TQD, k, v, batch, 0, chunk, 0.3, window)
    token = 0
    for row, (context, queries) in enumerate(rows):
        place = [(batch.table[row][p // block_size], p % block_size) for p in range(context)]
        keys, values = (torch.stack([pages[page, :, at] for page, at in place]) for pages in (k, v))
        for position in range(context - queries, context):
            first = 0 if chunk is None else position // chunk * chunk
            first = first if window is None else max(0, position - window + 1)
            for head in range(heads):
                shared = head * kv_heads // heads
                scores = keys[first : position + 1, shared] @ q_TQD[token, head] * 0.3
                want = scores.softmax(0) @ values[first : position + 1, shared]
                assert torch.allclose(got[token, head], want, atol=1e-5), (row, position, head)
            token += 1


@pytest.mark.parametrize(("chunk", "window"), [(16, None), (None, 3)])
def test_attention_never_reads_what_was_given_back_but_is_still_in_the_table(
    chunk: int | None, window: int | None
) -> None:
    """Entries before what is visible are stale: pages that another sequence owns by now."""
    batch, k, v = Batch([(19, 1), (21, 3)], 4), normal(64, 2, 4, 8), normal(64, 2, 4, 8, seed=1)
    q_TQD = normal(4, 4, 8, seed=2)
    want = attention.paged_attention(q_TQD, k, v, batch, 0, chunk, 0.3, window)
    batch.tables_GSB[:, :, :4] = 0
    batch.plans.clear()
    assert torch.equal(attention.paged_attention(q_TQD, k, v, batch, 0, chunk, 0.3, window), want)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("eps", [None, 1e-5])
@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("rope", [True, False])
def test_rope_kv(interleaved: bool, eps: float | None, tuned: bool, rope: bool) -> None:
    layout = HeadLayout(num_heads=4, num_kv_heads=2, head_dim=8, interleaved=interleaved)
    batch = Batch([(9, 1), (12, 6)], 5)
    k, v = torch.zeros(64, 2, 5, 8), torch.zeros(64, 2, 5, 8)
    qkv_TX, angles = normal(7, 8 * 8), normal(7, 4, seed=1) * 3
    temperature_T = normal(7, seed=2).abs() + 0.5
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1) if rope else None
    q_TQD = rotary.rope_kv(
        qkv_TX,
        cos_sin,
        temperature_T if tuned else None,
        layout,
        batch,
        0,
        k,
        v,
        None if eps is None else HeadNorm(eps),
    )
    heads = qkv_TX.view(7, 8, 8)
    for token in range(7):
        page, offset = divmod(int(batch.slots_GT[0, token]), 5)
        for head in range(6):
            want = heads[token, head].clone()
            for j in range(4) if rope else ():
                a, b = (2 * j, 2 * j + 1) if interleaved else (j, j + 4)
                turned = complex(want[a], want[b]) * complex(math.cos(angles[token, j]), math.sin(angles[token, j]))
                want[a], want[b] = turned.real, turned.imag
            want = want if eps is None else want / (want.pow(2).mean() + eps).sqrt()
            if head < 4:
                want = want * temperature_T[token] if tuned else want
                assert torch.allclose(q_TQD[token, head], want, atol=1e-5)
            else:
                assert torch.allclose(k[page, head - 4, offset], want, atol=1e-5)
        assert torch.equal(v[page, :, offset], heads[token, 6:])
    assert k.count_nonzero() == v.count_nonzero() == 7 * 2 * 8  # nothing else is written


@pytest.mark.parametrize("tokens", [1, 2, 9])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("scaled", [False, True])
def test_experts(tokens: int, top_k: int, scaled: bool) -> None:
    gate_up, down, x_TH = normal(5, 6, 8), normal(5, 4, 6, seed=1), normal(tokens, 6, seed=2)
    scales = (normal(5, 8, seed=3).abs(), normal(5, 6, seed=4).abs()) if scaled else None
    expert_Tk, weight_Tk = moe.route_sigmoid(normal(tokens, 5, seed=5), top_k)
    expert_Tk[expert_Tk == 3] = -1  # lives on another rank
    got = moe.Experts(gate_up, down, scales)(x_TH, expert_Tk, weight_Tk)
    for token in range(tokens):
        want = torch.zeros(6)
        for expert, weight in zip(expert_Tk[token].tolist(), weight_Tk[token], strict=True):
            if expert < 0:
                continue
            first = (weight * x_TH[token]) @ gate_up[expert] * (scales[0][expert] if scales else 1)
            want += (F.silu(first[:4]) * first[4:]) @ down[expert] * (scales[1][expert] if scales else 1)
        assert torch.allclose(got[token], want, atol=1e-5)


def test_routing_takes_the_best_logits_and_their_sigmoid() -> None:
    expert_Tk, weight_Tk = moe.route_sigmoid(torch.tensor([[0.0, 3.0, 2.0], [1.0, -1.0, -2.0]]).bfloat16(), 2)
    assert expert_Tk.tolist() == [[1, 2], [0, 1]] and weight_Tk.dtype is torch.float32
    assert torch.allclose(weight_Tk, torch.tensor([[3.0, 2.0], [1.0, -1.0]]).sigmoid())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms(dtype: torch.dtype) -> None:
    x, residual, weight = (normal(3, 16, seed=i).to(dtype) for i in range(3))
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    assert torch.allclose(norm.rms_norm(x, None, 1e-5).double(), exact, atol=tolerance)
    assert torch.allclose(norm.rms_norm(x, weight[0], 1e-5).double(), exact * weight[0].double(), atol=tolerance)
    y, total = norm.add_rms_norm(x.clone(), residual.clone(), weight[0], 1e-5)
    assert torch.equal(total, x + residual) and torch.equal(y, norm.rms_norm(x + residual, weight[0], 1e-5))


def test_silu_mul_takes_the_gate_from_the_first_half() -> None:
    x = normal(3, 8)
    assert torch.allclose(activation.silu_mul(x.clone()), F.silu(x[:, :4]) * x[:, 4:])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_linear(bias: bool, scale: bool, gated: bool) -> None:
    weight, x = normal(6, 5), normal(4, 5, seed=1)
    bias_N, scale_N = (normal(6, seed=2) if bias else None), (normal(6, seed=3).abs() if scale else None)
    layer = linear.Linear(weight, bias_N, scale_N, gated)
    want = x @ (weight * (scale_N[:, None] if scale_N is not None else 1)).T + (bias_N if bias_N is not None else 0)
    want = F.silu(want[:, :3]) * want[:, 3:] if gated else want
    assert torch.allclose(layer(x), want, atol=1e-5)
    assert layer.to_float32(x.double().float()).dtype is torch.float32
