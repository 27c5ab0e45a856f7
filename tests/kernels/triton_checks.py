"""Checks of Triton kernels against plain torch in float32: for the interpreter on CPU, for a GPU, for benchmarks/gpu.

Inputs are fresh at every call, outputs start as NaN. Each check returns the relative error that it found tolerable.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch

from remuda.kernels.table import HeadLayout, HeadNorm, PagedAttention

TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 1e-2}
FP8 = torch.float8_e4m3fn
_FP8_TOLERANCE = {"cuda": 5e-2, "cpu": 1e-1}  # the interpreter rounds towards zero


@contextmanager
def poisoned() -> Iterator[None]:
    """What `torch.empty` makes is NaN (integers: far out of range)."""
    empty = torch.empty

    def poison(*size: Any, **options: Any) -> torch.Tensor:
        x = empty(*size, **options)
        if x.dtype.itemsize == 1:
            return x.view(torch.uint8).fill_(0x7F).view(x.dtype)
        return x.fill_(float("nan") if x.is_floating_point() else -(2**30))

    with mock.patch("torch.empty", poison):
        yield


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape and bool(torch.isfinite(actual.float()).all())
    return float((actual.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-30))


def tolerable(actual: torch.Tensor, expected: torch.Tensor, limit: float) -> float:
    error = relative_error(actual, expected)
    assert error <= limit, f"relative error {error:.2e} above {limit:.0e}"
    return error


@dataclass(frozen=True)
class Batch:
    """What kernels read of a step (`remuda.kernels.batch.BatchView`)."""

    query_start_S1: torch.Tensor
    context_S: torch.Tensor
    tables_GSB: torch.Tensor
    places_GT: torch.Tensor
    max_query: int
    num_decodes: int
    block_size: int
    plans: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """Contexts of decode rows (0: padding of a graph), and (tokens before, tokens now) of the others."""

    decodes: tuple[int, ...]
    prompts: tuple[tuple[int, int], ...] = ()


def make_batch(rows: Rows, page: int, device: str) -> Batch:
    """Two groups whose pages lie scattered; page 0 belongs to nobody."""
    contexts = [*rows.decodes, *(before + count for before, count in rows.prompts)]
    counts = [1] * len(rows.decodes) + [count for _, count in rows.prompts]
    blocks = -(-max(contexts) // page) + 1
    tables = torch.randperm(2 * len(contexts) * blocks).add_(1).view(2, len(contexts), blocks)
    places = []
    for row, (context, count) in enumerate(zip(contexts, counts, strict=True)):
        positions = torch.arange(max(context - count, 0), max(context, 1))
        here = tables[:, row, positions // page] * page + positions % page
        places.append(here if context else torch.zeros_like(here))
    start = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)
    return Batch(
        start.to(device), torch.tensor(contexts, dtype=torch.int32, device=device), tables.int().to(device),
        torch.cat(places, dim=1).to(device), max(counts), len(rows.decodes), page,
    )  # fmt: skip


def make_pages(
    batch: Batch, heads: int, head_dim: int, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pages; the null page is NaN, since rows of padding may have left anything there."""
    shape = (batch.tables_GSB.numel() + 1, heads, batch.block_size, head_dim)
    k, v = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    if dtype != FP8:
        k[0], v[0] = float("nan"), float("nan")
    return k, v


def attend(
    q_TQD: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: Batch, group: int, chunk: int | None,
    window: int | None, scale: float,
) -> torch.Tensor:  # fmt: skip
    """float32 [T, Q, D], row by row."""
    out_TQD = torch.zeros(q_TQD.shape, device=q_TQD.device)
    share = q_TQD.shape[1] // k.shape[1]
    starts = batch.query_start_S1.tolist()
    for row, context in enumerate(batch.context_S.tolist()):
        first, last = starts[row], starts[row + 1]
        if context == 0 or first == last:
            continue
        pages = batch.tables_GSB[group, row, : -(-context // batch.block_size)].long()
        keys, values = (
            x[pages].float().transpose(1, 2).flatten(0, 1)[:context].repeat_interleave(share, 1) for x in (k, v)
        )
        position = torch.arange(context - (last - first), context, device=k.device)[:, None]
        key = torch.arange(context, device=k.device)
        keep = key <= position
        if chunk is not None:
            keep &= key >= position // chunk * chunk
        if window is not None:
            keep &= key > position - window
        scores = torch.einsum("tqd,lqd->qtl", q_TQD[first:last].float(), keys) * scale
        shares = scores.masked_fill_(~keep, float("-inf")).softmax(-1)
        out_TQD[first:last] = torch.einsum("qtl,lqd->tqd", shares, values)
    return out_TQD


def check_attention(
    device: str, dtype: torch.dtype, heads: tuple[int, int, int], page: int, rows: Rows,
    chunk: int | None = None, window: int | None = None, kv_dtype: torch.dtype | None = None, pdl: bool = False,
    kernel: PagedAttention | None = None,
) -> float:  # fmt: skip
    """`heads`: query heads, key heads, head_dim. `kernel`: Triton's, if no other is named."""
    from remuda.kernels.attention.triton import paged_attention

    Q, K, D = heads
    batch = make_batch(rows, page, device)
    k, v = make_pages(batch, K, D, kv_dtype or dtype, device)
    fused = torch.randn(int(batch.query_start_S1[-1]), Q + 2 * K, D, device=device).to(dtype)
    q_TQD = fused[:, :Q]
    k_scale, v_scale = (0.5, 2.0) if kv_dtype == FP8 else (1.0, 1.0)
    with poisoned():
        if kernel is None:
            out = paged_attention(q_TQD, k, v, batch, 1, chunk, D**-0.5, window, k_scale, v_scale, pdl)
        else:
            out = kernel(q_TQD, k, v, batch, 1, chunk, D**-0.5, window)
    expected = attend(q_TQD, k.float() * k_scale, v.float() * v_scale, batch, 1, chunk, window, D**-0.5)
    padding = [row for row, context in enumerate(rows.decodes) if context == 0]
    assert not out[padding].any()
    return tolerable(out, expected, TOLERANCE[dtype])


def _normed(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight.float()


def rotated(x_THD: torch.Tensor, cos_sin_TD: torch.Tensor, interleaved: bool) -> torch.Tensor:
    cos, sin = cos_sin_TD[:, None].chunk(2, -1)
    first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, cos.shape[-1]),
                                                                               slice(cos.shape[-1], None))  # fmt: skip
    out = torch.zeros_like(x_THD)
    a, b = x_THD[..., first], x_THD[..., second]
    out[..., first], out[..., second] = a * cos - b * sin, b * cos + a * sin
    return out


def check_rope(
    device: str, dtype: torch.dtype, heads: tuple[int, int, int], page: int, rows: Rows, interleaved: bool,
    norm: str = "none", rope: bool = True, tuned: bool = False, kv_dtype: torch.dtype | None = None, pdl: bool = False,
) -> float:  # fmt: skip
    """`norm`: none, after (weightless, after the rotation) or before (with weights, before it)."""
    from remuda.kernels.rotary.triton import rope_kv

    Q, K, D = heads
    batch = make_batch(rows, page, device)
    k, v = (torch.zeros_like(x.float()).to(x.dtype) for x in make_pages(batch, K, D, kv_dtype or dtype, device))
    tokens = batch.places_GT.shape[1]
    qkv = torch.randn(tokens, (Q + 2 * K) * D, device=device).to(dtype)
    angles = torch.rand(tokens, D // 2, device=device) * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1) if rope else None
    temperature = torch.rand(tokens, device=device) + 0.5 if tuned else None
    weights = tuple(torch.rand(D, device=device).to(dtype) + 0.5 for _ in range(2)) if norm == "before" else None
    exact = qkv.float().view(tokens, Q + 2 * K, D).clone()
    for part, weight in ((slice(0, Q), 0), (slice(Q, Q + K), 1)):
        x = exact[:, part]
        x = _normed(x, weights[weight], 1e-5) if weights else x
        x = rotated(x, cos_sin, interleaved) if cos_sin is not None else x
        exact[:, part] = _normed(x, None, 1e-5) if norm == "after" else x
    if temperature is not None:
        exact[:, :Q] *= temperature.view(-1, 1, 1)
    k_scale, v_scale = (0.5, 2.0) if kv_dtype == FP8 else (1.0, 1.0)
    head_norm = None if norm == "none" else HeadNorm(1e-5, norm == "before", *(weights or (None, None)))
    layout = HeadLayout(Q, K, D, interleaved)
    q = rope_kv(qkv, cos_sin, temperature, layout, batch, 1, k, v, head_norm, k_scale, v_scale, pdl)
    places, limit = batch.places_GT[1], TOLERANCE[dtype]
    live = places > 0
    kv_limit = _FP8_TOLERANCE[device] if kv_dtype == FP8 else limit
    for pages, factor, part in ((k, k_scale, slice(Q, Q + K)), (v, v_scale, slice(Q + K, None))):
        stored = pages.float()[places // page, :, places % page] * factor
        tolerable(stored[live], exact[live][:, part], kv_limit)
        untouched = torch.ones(pages.shape[0] * page, dtype=torch.bool, device=device)
        untouched[places] = False
        assert not pages.float().transpose(1, 2).flatten(0, 1)[untouched].any()
    return tolerable(q, exact[:, :Q], limit)


def check_angles(device: str, positions: list[int], half: int) -> float:
    from remuda.kernels.rotary.triton import rope_angles

    positions_T = torch.tensor(positions, device=device)
    frequency = 1.0 / 500000.0 ** (torch.arange(half, device=device) / half)
    with poisoned():
        cos_sin, temperature = rope_angles(positions_T, frequency, (8192.0, 0.1))
    angles = torch.outer(positions_T.float(), frequency)
    assert temperature is not None
    tolerable(temperature, 1 + 0.1 * torch.log1p(torch.floor((positions_T.float() + 1) / 8192)), 1e-6)
    return tolerable(cos_sin, torch.cat((angles.cos(), angles.sin()), -1), 1e-5)


def check_norm(device: str, dtype: torch.dtype, tokens: int, hidden: int, pdl: bool = False) -> float:
    from remuda.kernels.norm import triton as norm

    x, residual = (torch.randn(tokens, hidden, device=device).to(dtype) for _ in range(2))
    weight = torch.rand(hidden, device=device).to(dtype) + 0.5
    total = (x.float() + residual.float()).to(dtype)
    expected = _normed(total.float(), weight, 1e-5)
    with poisoned():
        plain = norm.rms_norm(x, None, 1e-5, pdl)
        y8, scale, _ = norm.add_rms_norm_fp8(x, residual.clone(), weight, 1e-5, pdl)
        x8, x_scale = norm.rms_norm_fp8(x, weight, 1e-5, pdl)
        y, new_residual = norm.add_rms_norm(x, residual, weight, 1e-5, pdl)
    tolerable(plain, _normed(x.float(), None, 1e-5), TOLERANCE[dtype])
    tolerable(new_residual, total, TOLERANCE[dtype])
    tolerable(y8.float() * scale[:, None], expected, _FP8_TOLERANCE[device])
    tolerable(x8.float() * x_scale[:, None], _normed(x.float(), weight, 1e-5), _FP8_TOLERANCE[device])
    return tolerable(y, expected, TOLERANCE[dtype])


def check_silu(device: str, dtype: torch.dtype, tokens: int, width: int, pdl: bool = False) -> float:
    from remuda.kernels.activation import triton as activation

    x = torch.randn(tokens, 2 * width, device=device).to(dtype)
    expected = torch.nn.functional.silu(x.float()[:, :width]) * x.float()[:, width:]
    with poisoned():
        y = activation.silu_mul(x, pdl)
        y8, scale = activation.silu_mul_fp8(x, pdl)
    tolerable(y8.float() * scale[:, None], expected, _FP8_TOLERANCE[device])
    return tolerable(y, expected, TOLERANCE[dtype])


def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Float8 rows and their factors."""
    scale = x.float().abs().amax(1) / 448.0
    return (x.float() / scale[:, None]).to(FP8), scale


def check_gemv(
    device: str, dtype: torch.dtype, rows: int, outputs: int, inputs: int, gated: bool = False, bias: bool = False,
    fp8: str = "none", pdl: bool = False,
) -> float:  # fmt: skip
    """`fp8`: none, weight (rows stay in `dtype`), or both."""
    from remuda.kernels.linear.triton import counters_needed, gemv

    x = torch.randn(rows, inputs, device=device).to(dtype)
    weight = (torch.randn(outputs, inputs, device=device) * inputs**-0.5).to(dtype)
    bias_N = torch.randn(outputs, device=device).to(dtype) if bias else None
    scale = x_scale = None
    exact_x, exact_weight = x.float(), weight.float()
    if fp8 != "none":
        weight, scale = quantized(weight)
        exact_weight = weight.float() * scale[:, None]
    if fp8 == "both":
        x, x_scale = quantized(x)
        exact_x = x.float() * x_scale[:, None]
    expected = exact_x @ exact_weight.T
    if bias_N is not None:
        expected += bias_N.float()
    if gated:
        expected = torch.nn.functional.silu(expected[:, : outputs // 2]) * expected[:, outputs // 2 :]
    counter = torch.zeros(counters_needed(weight), dtype=torch.int32, device=device)
    with poisoned():
        first, again = (gemv(x, weight, counter, scale, x_scale, bias_N, gated, dtype, pdl) for _ in range(2))
    assert torch.equal(first, again) and not counter.any()
    return tolerable(first, expected, TOLERANCE[dtype])


def check_argmax(device: str, dtype: torch.dtype, rows: int, vocab: int, pdl: bool = False) -> float:
    from remuda.kernels.head.torch import of_greedy_keys
    from remuda.kernels.head.triton import argmax_keys

    logits = torch.randn(rows, vocab, device=device).to(dtype)
    logits[0, [vocab // 3, vocab - 1]] = 9.0  # equals: the lower id wins
    logits[-1] = float("-inf")
    logits[-1, vocab // 2] = -5.0
    with poisoned():
        for _ in range(2):
            value, ids = of_greedy_keys(argmax_keys(logits, 1000, pdl))
    assert ids[0] == vocab // 3 + 1000 or rows == 1
    assert torch.equal(ids, logits.float().argmax(1) + 1000) and torch.equal(value, logits.float().amax(1))
    logits[0, vocab // 2] = float("nan")
    assert not of_greedy_keys(argmax_keys(logits, 0, pdl))[0][0].isfinite()
    return 0.0


def check_head(device: str, dtype: torch.dtype, rows: int, vocab: int, hidden: int, pdl: bool = False) -> float:
    from remuda.kernels.head.torch import of_greedy_keys
    from remuda.kernels.head.triton import head_keys
    from remuda.kernels.linear.cuda import make_linear

    x = torch.randn(rows, hidden, device=device).to(dtype)
    weight = (torch.randn(vocab + 3, hidden, device=device) * hidden**-0.5).to(dtype)
    weight[vocab:] = x[0]  # the shard's padding would win
    exact = x.float() @ weight[:vocab].float().T
    with poisoned():
        for _ in range(2):
            value, ids = of_greedy_keys(head_keys(make_linear(weight, pdl=pdl), x, vocab, 1000, pdl))
    chosen = exact.gather(1, (ids - 1000)[:, None]).squeeze(1)
    tolerable(value, chosen, 1e-4)  # sums of bfloat16 products are float32
    return tolerable(chosen, exact.amax(1), 1e-4)  # equal but for rounding


def check_keep_tokens(device: str, rows: int, pdl: bool = False) -> float:
    from remuda.kernels.head import torch as plain
    from remuda.kernels.head.triton import keep_tokens

    value = torch.randn(rows, device=device)
    value[1], value[-1] = float("inf"), float("-inf")
    keys = plain.greedy_keys(value, torch.randint(0, 1 << 18, (rows,), device=device))
    slots, positions = torch.randperm(rows, device=device), torch.randint(0, 8, (rows,), device=device)
    buffers = [torch.full((rows, 9), 7, device=device) for _ in range(2)]
    with poisoned():
        got = keep_tokens(keys, buffers[0], slots, positions, pdl)
    assert torch.equal(got, plain.keep_tokens(keys, buffers[1], slots, positions)) and got[1] == got[-1] == -1
    assert torch.equal(*buffers)
    return 0.0


def check_embedding(device: str, dtype: torch.dtype, tokens: int, hidden: int, pdl: bool = False) -> float:
    from remuda.kernels.vocab import torch as plain
    from remuda.kernels.vocab.triton import embed_tokens

    buffer = torch.randint(0, 300, (5, 40), device=device)
    slots, positions = torch.randint(0, 5, (tokens,), device=device), torch.randint(0, 40, (tokens,), device=device)
    weight = torch.randn(120, hidden, device=device).to(dtype)
    with poisoned():
        out = embed_tokens(buffer, slots, positions, weight, 100, 110, pdl)
    local = buffer[slots, positions] - 100
    mine = (local >= 0) & (local < 110)
    assert torch.equal(out, torch.where(mine[:, None], weight[local.clamp(0, 119)], 0))
    assert torch.equal(out, plain.embed_tokens(buffer, slots, positions, weight, 100, 110))
    return 0.0


def check_decode_inputs(device: str, slots: list[int], pages_per_slot: int, block: int, pdl: bool = False) -> float:
    from remuda.kernels.metadata import torch as plain
    from remuda.kernels.metadata.triton import decode_inputs

    pages = torch.randint(1, 1000, (3, max(slots) + 1, pages_per_slot), dtype=torch.int32, device=device)
    positions = torch.randint(0, pages_per_slot * block, (len(slots),), device=device)
    positions[0] = pages_per_slot * block - 1
    with poisoned():
        inputs = decode_inputs(torch.tensor(slots, device=device), positions, pages, block, pdl)
    expected = plain.decode_inputs(torch.tensor(slots, device=device), positions, pages, block)
    assert torch.equal(inputs.context_S, expected.context_S) and torch.equal(inputs.places_GS, expected.places_GS)
    for row, (slot, position) in enumerate(zip(slots, positions.tolist(), strict=True)):
        used = position // block + 1
        assert inputs.context_S[row] == position + 1
        assert torch.equal(inputs.tables_GSB[:, row, :used], pages[:, slot, :used])
        assert torch.equal(inputs.places_GS[:, row], pages[:, slot, used - 1].long() * block + position % block)
    return 0.0
