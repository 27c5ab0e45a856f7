"""What is loaded over the lane to a real GPU, what memory that takes, and what a GPU says when it has none left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from remuda.models.registry import TINY_KINDS, build_model, read_model_config
from remuda.parallel.collectives import SingleRank
from remuda.parallel.topology import Topology
from remuda.protocol.errors import DeviceOutOfMemory
from remuda.tiny import make_tiny
from remuda.weights import upload
from remuda.weights.loader import load_parameters
from remuda.worker.cuda.device import Gpu
from remuda.worker.faults import explained

LARGE = {"num_hidden_layers": 4, "hidden_size": 512, "num_local_experts": 16, "intermediate_size": 2048}


def loaded(path: Path, rank: int, device: str) -> list[torch.Tensor]:
    model = build_model(read_model_config(path), Topology(2, 1, rank, 0, 0, 4, 4), SingleRank(), device)
    parameters = model.parameters()
    load_parameters(parameters, path, device)
    return [parameter.take() for parameter in parameters]


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_a_gpu_gets_what_the_processor_reads(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With buffers so small that all are in use again and again."""
    make_tiny(kind, tmp_path, text={"num_hidden_layers": 4})
    monkeypatch.setattr(upload, "BUFFER_BYTES", 50_000)
    for rank in range(2):
        for mine, theirs in zip(loaded(tmp_path, rank, "cuda"), loaded(tmp_path, rank, "cpu"), strict=True):
            assert torch.equal(mine.cpu().view(torch.uint8), theirs.view(torch.uint8))


@pytest.mark.parametrize("kind", ["maverick", "maverick-fp8"])
def test_memory_stays_near_the_weights_while_they_come(kind: str, tmp_path: Path) -> None:
    make_tiny(kind, tmp_path, text=LARGE | {"intermediate_size_mlp": 4096})
    model = build_model(read_model_config(tmp_path), Topology(1, 1, 0, 0, 0, 4, 4), SingleRank(), "cuda")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        model.load()
    peak, staging = torch.cuda.max_memory_allocated() - before, 16 * upload.BUFFER_BYTES
    assert model.weight_bytes < peak < 1.2 * model.weight_bytes + staging


def test_the_peak_of_some_work_is_what_it_had_at_once() -> None:
    gpu = Gpu(0)
    held = torch.empty(1 << 20, device="cuda")

    def work() -> None:
        for _ in range(3):
            torch.empty(8 << 20, dtype=torch.uint8, device="cuda")

    assert 8 << 20 <= gpu.peak_bytes(work) < 17 << 20 and held.is_cuda


def test_no_memory_left_is_told_with_a_way_out() -> None:
    told = r"Tried to allocate .* free\. Lower --gpu-memory-utilization"
    with pytest.raises(DeviceOutOfMemory, match=told), explained(gpu=0):
        torch.empty(1 << 45, dtype=torch.uint8, device="cuda")
