"""What a rank reads: its own bytes, once, whatever the layout; and how much memory that takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from remuda.config.quant import FP8_ONLINE
from remuda.kernels.table import KernelTable
from remuda.models.decoder import DecoderLayer
from remuda.models.interfaces import Model
from remuda.models.registry import TINY_KINDS, build_model, read_model_config
from remuda.parallel.collectives import SingleRank
from remuda.parallel.topology import Topology
from remuda.tiny import make_tiny
from remuda.weights.loader import load_parameters
from remuda.weights.parameter import region_shape


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    for kind in TINY_KINDS:
        make_tiny(kind, root / kind, text={"num_hidden_layers": 4})
    return {kind: root / kind for kind in TINY_KINDS}


def ranks(path: Path, tp: int, partition: tuple[int, ...], ep: bool = False, dtype: str = "auto") -> list[Model]:
    config = read_model_config(path, dtype)
    models, first = [], 0
    for stage, count in enumerate(partition):
        for rank in range(tp):
            topology = Topology(tp, len(partition), rank, stage, first, first + count, 4, ep)
            models.append(build_model(config, topology, SingleRank()))
        first += count
    return models


def stored_bytes(path: Path) -> int:
    """Of all that is needed: packed integers say again what shape they had."""
    stored = {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    return sum(tensor.nbytes for name, tensor in stored.items() if not name.endswith("weight_shape"))


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_one_rank_reads_the_whole_checkpoint_once(checkpoints: dict[str, Path], kind: str) -> None:
    (model,) = ranks(checkpoints[kind], 1, (4,))
    assert model.load().checkpoint_bytes_read == stored_bytes(checkpoints[kind])


@pytest.mark.parametrize("kind", TINY_KINDS)
@pytest.mark.parametrize("ep", [False, True])
def test_ranks_share_the_checkpoint_without_overlap(checkpoints: dict[str, Path], kind: str, ep: bool) -> None:
    """Over TP4 x PP2 every tensor is read exactly once, but for what is replicated by design."""
    if ep and read_model_config(checkpoints[kind]).moe is None:
        return
    models = ranks(checkpoints[kind], 4, (3, 1), ep)
    read = sum(model.load().checkpoint_bytes_read for model in models)
    replicated, seen = 0, {}
    for model in models:
        for parameter in model.parameters():
            for piece in parameter.slices:
                seen.setdefault((piece.source, piece.region), []).append(piece)
    files = {n: t for file in checkpoints[kind].glob("*.safetensors") for n, t in load_file(file).items()}
    for (source, region), pieces in seen.items():
        if len(pieces) > 1:
            extra = (len(pieces) - 1) * torch.Size(region_shape(region)).numel() * files[source].itemsize
            replicated += extra
            whole = ("norm", "router", ".gate.weight", "vision", "multi_modal", "_scale")
            tied = source.endswith("embed_tokens.weight") and read_model_config(checkpoints[kind]).tie_word_embeddings
            assert tied or any(word in source for word in whole), source
    assert read == stored_bytes(checkpoints[kind]) + replicated


def test_key_value_heads_are_replicated_where_ranks_outnumber_them(checkpoints: dict[str, Path]) -> None:
    models = ranks(checkpoints["maverick"], 8, (4,))
    keys = [
        piece.region
        for model in models
        for parameter in model.parameters()
        for piece in parameter.slices
        if piece.source == "language_model.model.layers.0.self_attn.k_proj.weight"
    ]
    assert keys == [((64 * (rank // 2), 64 * (rank // 2) + 64), (0, 256)) for rank in range(8)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_both_stored_dtypes_give_the_same_weights(tmp_path: Path, dtype: str) -> None:
    loaded: list[list[torch.Tensor]] = []
    for stored in ("bfloat16", "float32"):
        make_tiny("scout", tmp_path / stored, dtype=stored, text={"num_hidden_layers": 4})
        (model,) = ranks(tmp_path / stored, 1, (4,), dtype=dtype)
        parameters = model.parameters()
        load_parameters(parameters, tmp_path / stored, torch.device("cpu"))
        loaded.append([parameter.take() for parameter in parameters])
    for one, other in zip(*loaded, strict=True):
        assert one.dtype == getattr(torch, dtype) and torch.equal(one, other)


def test_progress_counts_up_to_the_total(checkpoints: dict[str, Path]) -> None:
    calls: list[tuple[int, int]] = []
    (model,) = ranks(checkpoints["maverick-fp8"], 1, (4,))
    report = model.load(lambda done, total: calls.append((done, total)))
    done = [count for count, _ in calls]
    assert done == sorted(set(done)) and len(done) > 3
    assert calls[-1] == (report.checkpoint_bytes_read, report.checkpoint_bytes_read)


def test_layers_are_packed_while_others_are_still_read(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[int] = []
    pack = DecoderLayer.pack

    def packing(layer: DecoderLayer, kernels: KernelTable) -> None:
        packed.append(bytes_read)
        pack(layer, kernels)

    monkeypatch.setattr(DecoderLayer, "pack", packing)
    bytes_read = 0

    def progress(done: int, total: int) -> None:
        nonlocal bytes_read
        bytes_read = done

    (model,) = ranks(checkpoints["scout"], 1, (4,))
    read = model.load(progress).checkpoint_bytes_read
    assert len(packed) == 4 and len(set(packed)) == 4 and max(packed[:3]) < 0.9 * read


_MEASURE = """
import sys, torch
from remuda.models.registry import read_model_config
from remuda.models.registry import build_model
from remuda.parallel.collectives import SingleRank
from remuda.parallel.topology import Topology

def peak():
    return next(int(line.split()[1]) << 10 for line in open('/proc/self/status') if line.startswith('VmHWM'))

def model(path):
    return build_model(read_model_config(path), Topology(4, 1, 1, 0, 0, 4, 4), SingleRank())

small, large = sys.argv[1:]
model(small).load()  # libraries, first touches
before = peak()
report = model(large).load()
print(peak() - before, report.checkpoint_bytes_read)
"""


@pytest.mark.parametrize("kind", ["maverick", "maverick-fp8"])
def test_peak_memory_of_a_tp4_rank(tmp_path: Path, kind: str) -> None:
    """Host memory at its peak stays below 0.35 of the checkpoint plus a constant (the reader's windows)."""
    make_tiny(kind, tmp_path / "small", text={"num_hidden_layers": 4})
    sizes = {"num_hidden_layers": 4, "hidden_size": 512, "num_local_experts": 16, "intermediate_size": 2048}
    make_tiny(kind, tmp_path / "large", text=sizes | {"intermediate_size_mlp": 4096})
    checkpoint = stored_bytes(tmp_path / "large")
    assert checkpoint > 100e6
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, read = map(int, done.stdout.split())
    assert read < 0.27 * checkpoint
    assert peak < 0.35 * checkpoint + (24 << 20)


def test_weights_quantized_while_they_are_read_leave_only_float8_behind(checkpoints: dict[str, Path]) -> None:
    config = read_model_config(checkpoints["maverick"], "bfloat16")
    whole = Topology(1, 1, 0, 0, 0, 4, 4)
    plain = build_model(config, whole, SingleRank())
    made = build_model(msgspec.structs.replace(config, quant=FP8_ONLINE), whole, SingleRank())
    read, report = plain.load(), made.load()
    assert report.checkpoint_bytes_read == read.checkpoint_bytes_read
    assert report.weight_bytes == made.weight_bytes < 0.75 * read.weight_bytes
    down_EIH = made.layers[1].feed_forward.experts.experts.down_EIH
    assert down_EIH.dtype is torch.float8_e4m3fn and made.layers[1].feed_forward.router.linear.scale_N is None
