"""Regions of stored tensors, read in blocks through a tiny window so that every path runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from remuda.weights import reader
from remuda.weights.checkpoint import Checkpoint
from remuda.weights.reader import read_region

SHAPES = {"flat": (97,), "matrix": (12, 10), "fused": (3, 8, 14), "deep": (2, 3, 4, 5)}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored")
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    tensors |= {f"{name}.bf16": tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(tensors, path / "model.safetensors")
    return path


@st.composite
def regions(draw: st.DrawFn) -> tuple[str, tuple[tuple[int, int], ...]]:
    name = draw(st.sampled_from(sorted(SHAPES)))
    bounds = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in SHAPES[name]]
    return name, tuple((low, high) for low, high in bounds)


@given(regions(), st.sampled_from([1, 64, 1 << 20]), st.sampled_from([torch.float32, torch.bfloat16]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_region_in_any_window(
    stored: Path, where: tuple[str, tuple[tuple[int, int], ...]], window: int, dtype: torch.dtype, strided: bool
) -> None:
    name, region = where
    index = tuple(slice(low, high) for low, high in region)
    with Checkpoint(stored) as checkpoint, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "WINDOW_BYTES", window)
        for stored_name in (name, f"{name}.bf16"):
            tensor = checkpoint.find(stored_name, SHAPES[name])
            whole = torch.empty(SHAPES[name], dtype=tensor.dtype)
            read_region(checkpoint, tensor, tuple((0, n) for n in SHAPES[name]), whole)
            sizes = tuple(high - low for low, high in region)
            into = (
                torch.empty((*sizes[:-1], sizes[-1] * 2), dtype=dtype)[..., ::2]
                if strided
                else torch.empty(sizes, dtype=dtype)
            )
            count = read_region(checkpoint, tensor, region, into)
            assert count == into.numel() * tensor.dtype.itemsize
            assert torch.equal(into, whole[index].to(dtype))


def test_whole_tensors_equal_what_safetensors_reads(stored: Path) -> None:
    from safetensors.torch import load_file

    expected = load_file(stored / "model.safetensors")
    with Checkpoint(stored) as checkpoint:
        for name, want in expected.items():
            got = torch.empty_like(want)
            read_region(checkpoint, checkpoint.find(name, tuple(want.shape)), tuple((0, n) for n in want.shape), got)
            assert torch.equal(got, want)


def test_data_at_an_odd_offset(tmp_path: Path) -> None:
    """Writers need not pad the header: elements may then lie at addresses that no vector load likes."""
    want = torch.arange(60, dtype=torch.float32).view(6, 10)
    header = b'{"w":{"dtype":"F32","shape":[6,10],"data_offsets":[0,240]}}'
    header += b" " * (len(header) % 2 == 0)
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + want.numpy().tobytes())
    with Checkpoint(tmp_path) as checkpoint:
        tensor = checkpoint.find("w", (6, 10))
        assert tensor.start % 2 == 1
        for region in (((0, 6), (0, 10)), ((1, 5), (2, 7))):
            got = torch.empty([high - low for low, high in region])
            read_region(checkpoint, tensor, region, got)
            assert torch.equal(got, want[region[0][0] : region[0][1], region[1][0] : region[1][1]])
