"""The step that a GPU's memory is measured by, with this processor in the GPU's place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from remuda.config.engine import CacheConfig, EngineConfig, SchedulerConfig
from remuda.models.registry import build_model, read_model_config
from remuda.parallel.collectives import SingleRank
from remuda.parallel.topology import Topology
from remuda.tiny import make_tiny
from remuda.worker.cuda.memory import LargestStep, kv_bytes_of_gpu
from tests.worker.host_device import HostDevice

GIB = 1 << 30


class Measuring(HostDevice):
    def __init__(self) -> None:
        self.trimmed = 0

    def trim(self) -> None:
        self.trimmed += 1

    def peak_bytes(self, work: Callable[[], object]) -> int:
        work()
        assert not self.trimmed
        return 123


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    path: Path = tmp_path_factory.mktemp("tiny") / "maverick"
    make_tiny("maverick", path, text={"num_hidden_layers": 4})
    scheduler = SchedulerConfig(max_num_seqs=5, max_num_batched_tokens=70, max_model_len=64)
    return EngineConfig(read_model_config(path), scheduler=scheduler)


@pytest.mark.parametrize("stage", [0, 1])
def test_the_largest_step_is_run_on_every_stage(config: EngineConfig, stage: int) -> None:
    """As many tokens as a step may have, longer than a chunk of attention; images first, drawn tokens last."""
    topology = Topology(1, 2, 0, stage, 2 * stage, 2 * stage + 2, 4)
    model, comm = build_model(config.model, topology, SingleRank()), SingleRank()
    with torch.inference_mode():
        model.load()
        seen: list[tuple[str, torch.Size]] = []
        for name in ("encode_images", "embed", "run_layers", "logits"):
            if hasattr(model, name):
                setattr(model, name, spy(getattr(model, name), name, seen))
        device = Measuring()
        step = LargestStep(model, comm, config, topology, torch.bfloat16, device)
        assert step.measure() == 123 and device.trimmed == 1
    vision, hidden = config.model.vision, config.model.hidden_size
    assert vision is not None
    tiles = torch.Size((vision.max_tiles, 3, vision.image_size, vision.image_size))
    layers = ("run_layers", torch.Size((70, hidden)))
    first, last = [("encode_images", tiles), ("embed", torch.Size((70,))), layers], ("logits", torch.Size((5, hidden)))
    assert seen == (first if stage == 0 else [layers, last])


def spy(method: Callable[..., torch.Tensor], name: str, seen: list[tuple[str, torch.Size]]) -> Callable[..., object]:
    def called(x: torch.Tensor, *more: object) -> torch.Tensor:
        seen.append((name, x.shape))
        y = method(x, *more)
        assert y.isfinite().all()
        return y

    return called


def test_the_cache_gets_what_the_step_and_others_leave(config: EngineConfig) -> None:
    """8 GiB free of 8: a tenth is for others, the step and its margin, a GiB for what comes with use."""
    cache = CacheConfig(memory_utilization=0.5)
    config = msgspec.structs.replace(config, cache=cache)
    assert kv_bytes_of_gpu(HostDevice(), config, GIB) == 4 * GIB - int(1.1 * GIB) - GIB
    assert kv_bytes_of_gpu(HostDevice(), config, 4 * GIB) == 0
