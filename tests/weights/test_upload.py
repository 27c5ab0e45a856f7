"""Loading over a lane to a device, with this processor in the device's place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from remuda.models.registry import TINY_KINDS, build_model, read_model_config
from remuda.parallel.collectives import SingleRank
from remuda.parallel.topology import Topology
from remuda.protocol.errors import CheckpointError
from remuda.tiny import make_tiny
from remuda.weights import loader, upload
from remuda.weights.arriving import Read
from remuda.weights.checkpoint import Checkpoint
from remuda.weights.loader import load_parameters
from remuda.weights.parameter import Parameter
from remuda.weights.upload import Upload


class Late:
    """A moment that comes when somebody waits for it: until then its buffer must not be filled again."""

    def __init__(self, lane: HostLane) -> None:
        self._lane = lane
        self._come = False

    def synchronize(self) -> None:
        self._come = True
        self._lane.waited += 1

    def query(self) -> bool:
        return self._come


class HostLane:
    def __init__(self) -> None:
        self.buffers: list[torch.Tensor] = []
        self.inside = False
        self.waited = 0

    def pinned(self, nbytes: int) -> torch.Tensor:
        self.buffers.append(torch.full((nbytes,), 0xA5, dtype=torch.uint8))
        return self.buffers[-1]

    def staging(self, nbytes: int) -> torch.Tensor:
        return torch.full((nbytes,), 0x5A, dtype=torch.uint8)

    @contextmanager
    def aside(self) -> Iterator[None]:
        self.inside = True
        yield
        self.inside = False

    def reached(self) -> Late:
        return Late(self)

    def join(self) -> None:
        assert not self.inside


@pytest.fixture
def lane(monkeypatch: pytest.MonkeyPatch) -> HostLane:
    lane = HostLane()

    def carry(checkpoint: Checkpoint, reads: list[Read], device: torch.device) -> Iterator[Read]:
        return Upload(checkpoint, lane, readers=3).carry(reads)

    monkeypatch.setattr(loader, "_carry", carry)
    return lane


def parameters(path: Path, tp_rank: int) -> list[Parameter]:
    topology = Topology(2, 1, tp_rank, 0, 0, 4, 4)
    return build_model(read_model_config(path), topology, SingleRank()).parameters()


def loaded(path: Path, tp_rank: int) -> list[torch.Tensor]:
    declared = parameters(path, tp_rank)
    load_parameters(declared, path, "cpu")
    return [parameter.take() for parameter in declared]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    for kind in TINY_KINDS:
        make_tiny(kind, root / kind, text={"num_hidden_layers": 4})
    return {kind: root / kind for kind in TINY_KINDS}


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_it_loads_what_reading_into_place_loads(
    checkpoints: dict[str, Path], kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoints[kind]
    expected = loaded(path, 0) + loaded(path, 1)
    lane = request.getfixturevalue("lane")
    monkeypatch.setattr(upload, "BUFFER_BYTES", 100_000)  # tensors share buffers and span several
    got = loaded(path, 0) + loaded(path, 1)
    for one, other in zip(expected, got, strict=True):
        assert one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    assert lane.waited > 10


def test_the_host_holds_two_buffers_for_each_reader(checkpoints: dict[str, Path], lane: HostLane) -> None:
    loaded(checkpoints["maverick"], 0)
    assert len(lane.buffers) == 6


def test_parameters_are_complete_one_by_one(
    checkpoints: dict[str, Path], lane: HostLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "BUFFER_BYTES", 100_000)
    declared, order, early = parameters(checkpoints["scout"], 1), [], []

    def progress(done: int, total: int) -> None:
        early.append(len(order))

    load_parameters(declared, checkpoints["scout"], "cpu", progress, order.append)
    assert sorted(map(id, order)) == sorted(map(id, declared))
    assert early == sorted(early) and len(set(early)) > 5  # not all at the end


def test_a_file_cut_short_meanwhile_is_named(
    checkpoints: dict[str, Path], lane: HostLane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny("llama3", tmp_path, text={"num_hidden_layers": 4})
    file = max(tmp_path.glob("*.safetensors"))
    size = file.stat().st_size
    batches = upload.batches

    def cut_then(reads: list[Read]) -> Iterator[list[upload.Block]]:
        with file.open("r+b") as opened:
            opened.truncate(size // 3)
        yield from batches(reads)

    monkeypatch.setattr(upload, "batches", cut_then)
    with pytest.raises(CheckpointError, match="truncated"):
        loaded(tmp_path, 0)
