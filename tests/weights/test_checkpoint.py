"""However checkpoint files are wrong, a CheckpointError names file, tensor and expectation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from remuda.protocol.errors import CheckpointError
from remuda.weights.checkpoint import Checkpoint
from remuda.weights.loader import load_parameters
from remuda.weights.parameter import Parameter, Slice, whole


def parameter(name: str, *shape: int, dtype: str = "float32") -> Parameter:
    piece = Slice(name, shape, whole(shape), whole(shape))
    return Parameter(shape, dtype, (piece,))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(4, 6)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(5), "q": torch.ones(2, 2).to(torch.float8_e4m3fn)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "q": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def refusal(path: Path, *parameters: Parameter) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_parameters(parameters, path, torch.device("cpu"))
    return caught.value.message


def test_a_tensor_that_no_file_holds(sharded: Path) -> None:
    message = refusal(sharded, parameter("c", 7))
    assert "index.json" in message and "tensor c is missing" in message and "[7]" in message


def test_a_tensor_missing_from_its_file(sharded: Path) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    index["weight_map"]["a"] = "two.safetensors"
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refusal(sharded, parameter("a", 4, 6))
    assert "two.safetensors" in message and "tensor a is missing" in message


def test_another_shape(sharded: Path) -> None:
    message = refusal(sharded, parameter("a", 6, 4))
    assert "one.safetensors" in message and "tensor a has shape [4, 6], expected [6, 4]" in message


def test_a_missing_file(sharded: Path) -> None:
    (sharded / "one.safetensors").unlink()
    assert "one.safetensors cannot be opened: No such file" in refusal(sharded, parameter("a", 4, 6))


def test_a_directory_in_a_files_place(sharded: Path) -> None:
    (sharded / "one.safetensors").unlink()
    (sharded / "one.safetensors").mkdir()
    assert "one.safetensors cannot be read: Is a directory" in refusal(sharded, parameter("a", 4, 6))


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_truncated_file(sharded: Path, keep: int) -> None:
    file = sharded / "one.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    message = refusal(sharded, parameter("a", 4, 6))
    assert "one.safetensors" in message and "truncated" in message


def test_nothing_is_allocated_for_a_checkpoint_that_does_not_fit(sharded: Path) -> None:
    good = parameter("a", 4, 6)
    refusal(sharded, good, parameter("c", 7))
    with pytest.raises(AssertionError):
        good.take()


def test_float8_where_the_config_says_none_and_the_reverse(sharded: Path) -> None:
    assert "tensor q is torch.float8_e4m3fn, expected float32" in refusal(sharded, parameter("q", 2, 2))
    assert "tensor b is torch.float32, expected float8" in refusal(sharded, parameter("b", 5, dtype="float8_e4m3fn"))


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "not json",
        '{"a": 3}',
        '{"a": {"dtype": "F32", "shape": [4, 6]}}',
        '{"a": {"dtype": "F32", "shape": [4, 6], "data_offsets": [0]}}',
        '{"a": {"dtype": "F32", "shape": [4, -6], "data_offsets": [0, 96]}}',
        '{"a": {"dtype": "F32", "shape": [4, 6], "data_offsets": [96, 0]}}',
        '{"a": {"dtype": "F32", "shape": [4, 6], "data_offsets": [0, 95]}}',
        '{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 96]}}',
        '{"a": {"dtype": "I4", "shape": [4, 6], "data_offsets": [0, 96]}}',
        '{"a": {"dtype": ["F32"], "shape": [4, 6], "data_offsets": [0, 96]}}',
        "[" * 100_000,
    ],
)
def test_hostile_headers(tmp_path: Path, header: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(96))
    assert str(file) in refusal(tmp_path, parameter("a", 4, 6))


@pytest.mark.parametrize("index", ["[]", "{", '{"weight_map": []}', '{"weight_map": {"a": "../one.safetensors"}}'])
def test_hostile_indexes(sharded: Path, index: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(index)
    assert "index.json" in refusal(sharded, parameter("a", 4, 6))


def test_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds neither"):
        Checkpoint(tmp_path)
