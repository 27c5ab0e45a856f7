"""Other tiles than the kernels' own at a few telling shapes: what the static tables of tiles are chosen by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

from benchmarks.gpu.kernel_cases import Case, all_cases
from remuda.kernels.attention.tiles import Tile
from remuda.kernels.linear.triton import GemvTile

_DECODE = ("10/2 b1 at 4096", "10/2 b128 at 4096", "40/8 b32 at 4096")
_DECODE_TILES = [(64, 4, 3), (64, 4, 7), (128, 4, 5), (128, 8, 5), (32, 4, 7), (64, 2, 5)]  # keys, warps, stages
_SPLITS = {"10/2 b1 at 4096": (16, 32), "10/2 b32 at 4096": (2, 8, 16), "10/2 b128 at 4096": (1, 4)}
_PROMPT_TILES = [(128, 128, 8, 3), (128, 64, 8, 5), (128, 64, 4, 3), (64, 64, 4, 3), (64, 128, 4, 3), (128, 32, 8, 5)]
_GEMV_TILES = [(4, 1024, 4, 1), (8, 1024, 4, 3), (2, 1024, 4, 3), (4, 512, 2, 3), (8, 512, 2, 3), (4, 2048, 8, 3)]


def _with(case: Case, target: str, value: Any, shape: str) -> Case:
    """The case with a choice of its kernel replaced while it is called."""

    def make() -> Callable[[int, bool], object]:
        with mock.patch(target, lambda *_: value):
            call = case.make()

        def patched(copy: int, pdl: bool) -> object:
            with mock.patch(target, lambda *_: value):
                return call(copy, pdl)

        return patched

    return replace(case, shape=f"{case.shape} {shape}", make=make, make_torch=None, pdl=False)


def sweeps() -> Iterator[Case]:
    cases = {(case.kernel, case.shape): case for case in all_cases()}
    for queries, keys, warps, stages in _PROMPT_TILES:
        tile = Tile(queries, keys, warps, stages)
        target = "remuda.kernels.attention.triton.prompt_tile"
        yield _with(cases["prefill", "10/2 8 x 4096"], target, tile, f"{queries}x{keys} w{warps} s{stages}")
    for shape in ("qkv TP4 1792x5120 R1", "dense up TP4 8192x5120 gated R1", "8b down 4096x14336 R1"):
        for outputs, inputs, warps, stages in _GEMV_TILES:
            tile = GemvTile(outputs, inputs, warps, stages, rows=1)
            target = "remuda.kernels.linear.triton.row_tile"
            yield _with(cases["gemv", shape], target, tile, f"{outputs}x{inputs} w{warps} s{stages}")
    for shape in _DECODE:
        for keys, warps, stages in _DECODE_TILES:
            target = "remuda.kernels.attention.triton.decode_tile"
            yield _with(cases["decode", shape], target, Tile(16, keys, warps, stages), f"{keys} w{warps} s{stages}")
    for shape, choices in _SPLITS.items():
        for splits in choices:
            target = "remuda.kernels.attention.triton.decode_splits"
            yield _with(cases["decode", shape], target, splits, f"{splits} splits")
