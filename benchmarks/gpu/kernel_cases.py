"""What `bench_kernels.py` times: Triton kernels at the shapes of Maverick, Scout and Llama 3 8B on ranks of TP1 to TP4.

A case builds its data when it is run and says how many bytes and operations a call is bound to cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.gpu.timing import Call
from remuda.kernels.table import HeadLayout, HeadNorm
from tests.kernels.triton_checks import FP8, Batch, quantized

DEVICE = "cuda"
_COLD_BYTES = 120e6  # of data in turn: more than twice the second-level cache
_MOST_COPIES = 32
_PAGE = 16
BF16 = torch.bfloat16


@dataclass(frozen=True)
class Case:
    kernel: str
    shape: str
    bytes: float
    flops: float
    make: Callable[[], Callable[[int, bool], object]]  # -> call(copy, pdl)
    make_torch: Callable[[], Callable[[int], object]] | None = None
    pdl: bool = True  # whether to time it with early launch too

    @property
    def copies(self) -> int:
        return max(1, min(_MOST_COPIES, int(_COLD_BYTES // self.bytes) + 1))

    def calls(self, pdl: bool) -> list[Call]:
        call = self.make()
        return [lambda copy=copy: call(copy, pdl) for copy in range(self.copies)]  # type: ignore[misc]

    def torch_calls(self) -> list[Call]:
        assert self.make_torch is not None
        call = self.make_torch()
        return [lambda copy=copy: call(copy) for copy in range(self.copies)]  # type: ignore[misc]


def random(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE, dtype=BF16).to(dtype)


def _pages(rows: int, context: int, visible: int, layers: int) -> tuple[torch.Tensor, int]:
    """A table of scattered pages [1, rows, blocks] (all rows' visible pages distinct) and the pages of the pool."""
    blocks = -(-context // _PAGE)
    seen = -(-visible // _PAGE)
    pages = rows * seen + 1
    table = torch.zeros(1, rows, blocks, dtype=torch.int32)
    table[0, :, blocks - seen :] = (torch.randperm(pages - 1) + 1).view(rows, seen).int()
    return table.to(DEVICE), pages


def _decode(heads: str, q_heads: int, kv_heads: int, rows: int, context: int, chunk: int | None) -> Case:
    visible = context if chunk is None else (context - 1) % chunk + 1
    kv_bytes = 2 * rows * visible * kv_heads * 128 * 2

    def make() -> Callable[[int, bool], object]:
        from remuda.kernels.attention.triton import paged_attention

        table, pages = _pages(rows, context, visible, case.copies)
        layers = [
            (random(pages, kv_heads, _PAGE, 128), random(pages, kv_heads, _PAGE, 128)) for _ in range(case.copies)
        ]
        q = random(rows, q_heads, 128)
        batch = Batch(
            torch.arange(rows + 1, dtype=torch.int32, device=DEVICE),
            torch.full((rows,), context, dtype=torch.int32, device=DEVICE),
            table, torch.zeros(1, rows, dtype=torch.int64, device=DEVICE), 1, rows, _PAGE,
        )  # fmt: skip
        return lambda copy, pdl: paged_attention(q, *layers[copy], batch, 0, chunk, 128**-0.5, pdl=pdl)

    flops = 4 * rows * visible * q_heads * 128
    case = Case("decode", f"{heads} b{rows} at {context}{' chunked' if chunk else ''}", kv_bytes, flops, make)
    return case


def _prompt(heads: str, q_heads: int, kv_heads: int, rows: int, context: int, chunk: int | None) -> Case:
    lengths = [context] if chunk is None else [chunk] * (context // chunk)
    flops = 4 * rows * q_heads * 128 * sum(n * (n + 1) // 2 for n in lengths)
    data = 2 * rows * context * (q_heads + kv_heads) * 128 * 2

    def make() -> Callable[[int, bool], object]:
        from remuda.kernels.attention.triton import paged_attention

        table, pages = _pages(rows, context, context, 1)
        k, v = random(pages, kv_heads, _PAGE, 128), random(pages, kv_heads, _PAGE, 128)
        q = random(rows * context, q_heads, 128)
        batch = Batch(
            torch.arange(rows + 1, dtype=torch.int32, device=DEVICE) * context,
            torch.full((rows,), context, dtype=torch.int32, device=DEVICE),
            table, torch.zeros(1, 1, dtype=torch.int64, device=DEVICE), context, 0, _PAGE,
        )  # fmt: skip
        return lambda copy, pdl: paged_attention(q, k, v, batch, 0, chunk, 128**-0.5, pdl=pdl)

    return Case("prefill", f"{heads} {rows} x {context}{' chunked' if chunk else ''}", data, flops, make, pdl=False)


def _rope(heads: str, q_heads: int, kv_heads: int, tokens: int, interleaved: bool, norm: bool) -> Case:
    width = (q_heads + 2 * kv_heads) * 128

    def make() -> Callable[[int, bool], object]:
        from remuda.kernels.rotary.triton import rope_kv

        pages = -(-tokens // _PAGE) + 1
        k, v = random(pages, kv_heads, _PAGE, 128), random(pages, kv_heads, _PAGE, 128)
        copies = [random(tokens, width) for _ in range(case.copies)]
        cos_sin, layout = random(tokens, 128, dtype=torch.float32), HeadLayout(q_heads, kv_heads, 128, interleaved)
        places = (torch.randperm(tokens) + _PAGE).view(1, -1).to(DEVICE)
        none = torch.zeros(1, dtype=torch.int32, device=DEVICE)
        batch = Batch(none, none, none, places, 1, tokens, _PAGE)
        after = HeadNorm(1e-5) if norm else None
        return lambda copy, pdl: rope_kv(copies[copy], cos_sin, None, layout, batch, 0, k, v, after, pdl=pdl)

    style = ("interleaved" if interleaved else "halves") + (" norm" if norm else "")
    case = Case("rope_kv", f"{heads} {style} T{tokens}", tokens * (width * 4 + 512), 0, make)
    return case


def _norm(tokens: int, fp8: bool) -> Case:
    hidden = 5120

    def make() -> Callable[[int, bool], object]:
        from remuda.kernels.norm.triton import add_rms_norm, add_rms_norm_fp8

        run = add_rms_norm_fp8 if fp8 else add_rms_norm
        copies = [(random(tokens, hidden), random(tokens, hidden)) for _ in range(case.copies)]
        weight = random(hidden)
        return lambda copy, pdl: run(*copies[copy], weight, 1e-5, pdl)

    data = tokens * hidden * (7 if fp8 else 8)
    case = Case("add_rms_norm", f"{'fp8 ' if fp8 else ''}T{tokens}", data, 0, make)
    return case


def _silu(tokens: int, width: int, fp8: bool) -> Case:
    def make() -> Callable[[int, bool], object]:
        from remuda.kernels.activation.triton import silu_mul, silu_mul_fp8

        run = silu_mul_fp8 if fp8 else silu_mul
        copies = [random(tokens, 2 * width) for _ in range(case.copies)]
        return lambda copy, pdl: run(copies[copy], pdl)

    case = Case("silu_mul", f"{'fp8 ' if fp8 else ''}T{tokens} I{width}", tokens * width * (5 if fp8 else 6), 0, make)
    return case


def _gemv(layer: str, rows: int, outputs: int, inputs: int, gated: bool, fp8: bool) -> Case:
    def make() -> Callable[[int, bool], object]:
        from remuda.kernels.linear.triton import counters_needed, gemv

        x, x_scale = quantized(random(rows, inputs)) if fp8 else (random(rows, inputs), None)
        scale = torch.rand(outputs, device=DEVICE) if fp8 else None
        weights = [random(outputs, inputs, dtype=FP8 if fp8 else BF16) for _ in range(case.copies)]
        counter = torch.zeros(counters_needed(weights[0]), dtype=torch.int32, device=DEVICE)
        return lambda copy, pdl: gemv(x, weights[copy], counter, scale, x_scale, None, gated, BF16, pdl)

    def make_torch() -> Callable[[int], object]:
        x, weights = random(rows, inputs), [random(outputs, inputs) for _ in range(case.copies)]
        if not fp8:
            return lambda copy: F.linear(x, weights[copy])
        (x8, x_scale), w8 = quantized(x), [w.to(FP8) for w in weights]
        scale = torch.rand(1, outputs, device=DEVICE)
        return lambda copy: torch._scaled_mm(x8, w8[copy].T, x_scale[:, None], scale, out_dtype=BF16)

    name = f"{layer} {outputs}x{inputs}{' gated' if gated else ''}{' fp8' if fp8 else ''} R{rows}"
    case = Case("gemv", name, outputs * inputs * (1 if fp8 else 2), 0, make, make_torch)
    return case


def _argmax(rows: int, vocab: int) -> Case:
    def make() -> Callable[[int, bool], object]:
        from remuda.kernels.head.triton import argmax_keys

        copies = [random(rows, vocab, dtype=torch.float32) for _ in range(case.copies)]
        return lambda copy, pdl: argmax_keys(copies[copy], 0, pdl)

    def make_torch() -> Callable[[int], object]:
        copies = [random(rows, vocab, dtype=torch.float32) for _ in range(case.copies)]
        return lambda copy: copies[copy].max(dim=1)

    case = Case("argmax", f"float32 [{rows}, {vocab}]", rows * vocab * 4, 0, make, make_torch)
    return case


def _head(rows: int, vocab: int, hidden: int) -> Case:
    def make() -> Callable[[int, bool], object]:
        from remuda.kernels.head.triton import weight_keys

        x, weight = random(rows, hidden), random(vocab, hidden)
        return lambda copy, pdl: weight_keys(x, weight, 0, pdl)

    def make_torch() -> Callable[[int], object]:
        x, weight = random(rows, hidden), random(vocab, hidden)
        return lambda copy: F.linear(x, weight).max(dim=1)

    return Case("head_argmax", f"{vocab} x {hidden} R{rows}", vocab * hidden * 2, 0, make, make_torch)


def _step(rows: int) -> Iterator[Case]:
    """What happens once a step: metadata, angles, embedding of ids that only the device knows."""

    def make_inputs() -> Callable[[int, bool], object]:
        from remuda.kernels.metadata.triton import decode_inputs

        tables = torch.randint(1, 1000, (4, 256, 512), dtype=torch.int32, device=DEVICE)
        positions = torch.full((rows,), 4000, device=DEVICE)
        slots = torch.arange(rows, device=DEVICE)
        return lambda copy, pdl: decode_inputs(slots, positions, tables, 16, pdl)

    def make_angles() -> Callable[[int, bool], object]:
        from remuda.kernels.rotary.triton import rope_angles

        positions, frequency = torch.arange(rows, device=DEVICE), torch.rand(64, device=DEVICE)
        return lambda copy, pdl: rope_angles(positions, frequency, (8192.0, 0.1), pdl)

    def make_embedding() -> Callable[[int, bool], object]:
        from remuda.kernels.vocab.triton import embed_tokens

        tokens, weight = torch.randint(0, 50000, (256, 8192), device=DEVICE), random(50512, 5120)
        slots, positions = torch.arange(rows, device=DEVICE), torch.randint(0, 8192, (rows,), device=DEVICE)
        return lambda copy, pdl: embed_tokens(tokens, slots, positions, weight, 0, 50512, pdl)

    yield Case("decode_inputs", f"S{rows} 4 groups at 4000", rows * 4 * 251 * 8, 0, make_inputs)
    yield Case("rope_angles", f"T{rows}", rows * 516, 0, make_angles)
    yield Case("embed_tokens", f"T{rows}", rows * 5120 * 4, 0, make_embedding)


RANKS = {"40/8": (40, 8), "10/2": (10, 2), "20/4": (20, 4), "32/8": (32, 8)}


def all_cases() -> Iterator[Case]:
    for heads, (q_heads, kv_heads) in RANKS.items():
        for rows in (1, 32, 128):
            for context, chunk in ((256, None), (1024, None), (4096, None), (32768, 8192)):
                if heads != "20/4" or context != 1024:
                    yield _decode(heads, q_heads, kv_heads, rows, context, chunk)
    yield _decode("10/2", 10, 2, 1, 32768, None)
    yield _decode("10/2", 10, 2, 8, 32768, None)
    for heads in ("40/8", "10/2", "32/8"):
        yield _prompt(heads, *RANKS[heads], 8, 4096, None)
    yield _prompt("10/2", 10, 2, 2, 16384, 8192)
    for tokens in (1, 8, 128, 4096):
        yield _rope("10/2", 10, 2, tokens, True, True)
        yield _norm(tokens, False)
    yield _rope("32/8", 32, 8, 4096, False, False)
    yield from (_norm(1, True), _norm(128, True), _silu(1, 4096, False), _silu(4096, 4096, False), _silu(8, 4096, True))
    for layer, outputs, inputs, gated in (
        ("qkv TP4", 1792, 5120, False), ("qkv TP1", 7168, 5120, False), ("o TP4", 5120, 1280, False),
        ("dense up TP4", 8192, 5120, True), ("dense down TP4", 5120, 4096, False), ("shared up TP4", 4096, 5120, True),
        ("8b up", 28672, 4096, True), ("8b down", 4096, 14336, False),
    ):  # fmt: skip
        for rows in (1, 8):
            yield _gemv(layer, rows, outputs, inputs, gated, False)
        yield _gemv(layer, 4, outputs, inputs, gated, True)
    yield from (_argmax(1, 50512), _argmax(128, 50512), _head(1, 50512, 5120), _head(8, 50512, 5120))
    yield from _step(128)
