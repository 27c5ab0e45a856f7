"""Attention and rope of the GPU's kernels in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.kernels import interpreter  # noqa: F401
from tests.kernels.triton_checks import FP8, Rows, check_angles, check_attention, check_rope

MIXED = Rows(decodes=(1, 130, 0, 65), prompts=((0, 40), (61, 9), (128, 1)))


@pytest.mark.parametrize(
    ("dtype", "chunk", "window"),
    [
        (torch.float32, None, None),
        (torch.bfloat16, None, None),
        (torch.bfloat16, 64, None),
        (torch.float32, 24, None),
        (torch.bfloat16, None, 19),
    ],
)
def test_attention(dtype: torch.dtype, chunk: int | None, window: int | None) -> None:
    check_attention("cpu", dtype, (5, 1, 64), 16, MIXED, chunk, window)


@pytest.mark.parametrize(("heads", "page"), [((4, 2, 128), 4), ((3, 3, 64), 32), ((2, 1, 256), 128), ((4, 1, 16), 8)])
def test_attention_of_other_heads_and_pages(heads: tuple[int, int, int], page: int) -> None:
    check_attention("cpu", torch.bfloat16, heads, page, Rows((70, 3), ((0, 5), (30, 12))), chunk=32)


def test_attention_over_float8_pages() -> None:
    check_attention("cpu", torch.bfloat16, (4, 2, 64), 16, Rows((70, 3), ((0, 5),)), kv_dtype=FP8)


@pytest.mark.parametrize(("head_dim", "window"), [(64, None), (128, None), (256, 600)])
def test_parts_of_long_rows_are_added_up(head_dim: int, window: int | None) -> None:
    check_attention("cpu", torch.bfloat16, (3, 1, head_dim), 64, Rows((512, 513, 0, 1300)), None, window)


@pytest.mark.parametrize("context", [127, 128, 129, 256, 257])
def test_attention_at_the_border_of_a_chunk(context: int) -> None:
    check_attention("cpu", torch.float32, (2, 1, 64), 16, Rows((context,), ((context - 2, 2),)), chunk=128)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("dtype", "norm", "rope", "tuned"),
    [
        (torch.bfloat16, "none", True, False),
        (torch.float32, "after", True, False),
        (torch.bfloat16, "before", True, False),
        (torch.bfloat16, "none", False, True),
        (torch.float32, "none", False, False),
    ],
)
def test_rope(dtype: torch.dtype, norm: str, rope: bool, tuned: bool, interleaved: bool) -> None:
    check_rope("cpu", dtype, (2, 1, 64), 16, Rows((20, 0), ((0, 3),)), interleaved, norm, rope, tuned)


def test_rope_of_many_tokens_into_float8_pages() -> None:
    check_rope("cpu", torch.bfloat16, (2, 1, 64), 16, Rows((5,), ((0, 70),)), True, kv_dtype=FP8)


def test_rope_angles() -> None:
    check_angles("cpu", [0, 1, 8190, 8191, 131071], 32)
