"""How fast the ranks of a machine read a safetensors checkpoint onto their GPUs, all at once, and what limits them.

    python benchmarks/gpu/bench_loading.py MODEL SCRATCH results.json --layers 4 --ranks 4

MODEL holds a config.json; a checkpoint of its first layers is written to SCRATCH (and removed), so that it is read from
the page cache. Limits: pinned buffers to the GPU, and files to pinned buffers, each on all ranks at once.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from remuda.models.interfaces import Model
from remuda.models.registry import build_model, read_model_config
from remuda.parallel.collectives import SingleRank
from remuda.parallel.topology import Topology
from remuda.protocol.dtypes import VALUE_BYTES
from remuda.weights.checkpoint import INDEX_FILE
from remuda.weights.upload import BUFFER_BYTES

_NAMES = {"bfloat16": "BF16", "float32": "F32", "float8_e4m3fn": "F8_E4M3"}
_FILE_BYTES = 2 << 30
_LIMIT_BYTES = 4 << 30
Stored = tuple[str, tuple[int, ...], str]  # name, shape, dtype


def shortened(model: Path, layers: int, scratch: Path) -> None:
    """config.json of the first `layers` layers."""
    config = json.loads((model / "config.json").read_text())
    text = config.get("text_config", config)
    text["num_hidden_layers"] = layers
    for key, value in text.items():
        if key in ("no_rope_layers", "layer_types", "moe_layers") and isinstance(value, list):
            text[key] = [entry for entry in value if key != "moe_layers" or entry < layers][:layers]
    scratch.mkdir(parents=True)
    (scratch / "config.json").write_text(json.dumps(config))


def share(directory: Path, ranks: int, rank: int, device: str) -> Model:
    config = read_model_config(directory)
    topology = Topology(ranks, 1, rank, 0, 0, config.num_layers, config.num_layers)
    return build_model(config, topology, SingleRank(), device)


def stored_tensors(directory: Path) -> list[Stored]:
    """What the model declares to read, in order."""
    found: dict[str, Stored] = {}
    for parameter in share(directory, 1, 0, "cpu").parameters():
        for piece in parameter.slices:
            found.setdefault(piece.source, (piece.source, piece.shape, parameter.dtype))
    return list(found.values())


def nbytes(tensor: Stored) -> int:
    return int(torch.Size(tensor[1]).numel()) * VALUE_BYTES[tensor[2]]


def write_file(path: Path, tensors: list[Stored]) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for tensor in tensors:
        name, shape, dtype = tensor
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [offset, offset + nbytes(tensor)]}
        offset += nbytes(tensor)
    encoded = json.dumps(header).encode()
    # Every byte is below 0x3c: no float of any format made of them is large or NaN.
    noise = memoryview(torch.randint(0, 0x3C, (64 << 20,), dtype=torch.uint8).numpy())
    with path.open("wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        while offset > 0:
            offset -= file.write(noise[: min(offset, len(noise))])


def write_checkpoint(directory: Path) -> int:
    files: list[list[Stored]] = [[]]
    tensors = stored_tensors(directory)
    for tensor in tensors:
        if sum(map(nbytes, files[-1])) + nbytes(tensor) > _FILE_BYTES and files[-1]:
            files.append([])
        files[-1].append(tensor)
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    with ProcessPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        list(pool.map(write_file, [directory / name for name in names], files))
    weight_map = {tensor[0]: name for name, some in zip(names, files, strict=True) for tensor in some}
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return sum(map(nbytes, tensors))


def pinned_copies(device: torch.device) -> float:
    """GB/s of buffers as large as the loader's."""
    host = [torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(8)]
    there = [torch.empty_like(buffer, device=device, pin_memory=False) for buffer in host]
    torch.cuda.synchronize(device)
    began_s = time.perf_counter()
    for i in range(_LIMIT_BYTES // BUFFER_BYTES):
        there[i % 8].copy_(host[i % 8], non_blocking=True)
    torch.cuda.synchronize(device)
    return _LIMIT_BYTES / (time.perf_counter() - began_s) / 1e9


def file_reads(directory: Path, rank: int, threads: int) -> float:
    """GB/s from the page cache to pinned buffers."""
    files = sorted(directory.glob("*.safetensors"))
    path = files[rank % len(files)]
    size = min(path.stat().st_size, _LIMIT_BYTES)
    buffers = [torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=True).numpy() for _ in range(threads)]
    descriptor = os.open(path, os.O_RDONLY)

    def read(thread: int) -> None:
        for offset in range(thread * BUFFER_BYTES, size, threads * BUFFER_BYTES):
            os.preadv(descriptor, [buffers[thread].data], offset)

    began_s = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(threads)))
    rate = size / (time.perf_counter() - began_s) / 1e9
    os.close(descriptor)
    return rate


def measure(rank: int, ranks: int, directory: Path, threads: int, together: Any, rows: Any) -> None:
    torch.set_num_threads(threads)
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    torch.zeros(1, device=device)
    with torch.inference_mode():
        together.wait()
        copies = pinned_copies(device)
        together.wait()
        reads = file_reads(directory, rank, min(8, threads))
        row: dict[str, Any] = {"rank": rank, "pinned_copy_gb_s": copies, "file_read_gb_s": reads}
        for attempt in ("first", "second"):
            model = share(directory, ranks, rank, f"cuda:{rank}")
            torch.cuda.reset_peak_memory_stats()
            together.wait()
            began_s = time.perf_counter()
            report = model.load()
            torch.cuda.synchronize()
            took_s = time.perf_counter() - began_s
            row |= {
                f"{attempt}_s": took_s, f"{attempt}_gb_s": report.checkpoint_bytes_read / took_s / 1e9,
                "read_gb": report.checkpoint_bytes_read / 1e9, "weights_gb": report.weight_bytes / 1e9,
                "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
            }  # fmt: skip
            del model
            torch.cuda.empty_cache()
    with open("/proc/self/status") as status:
        peak = next(line for line in status if line.startswith("VmHWM"))
    row["host_peak_gb"] = int(peak.split()[1]) * 1024 / 1e9
    rows.put(row)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=4)
    options = parser.parse_args()
    directory = options.scratch / f"loading-{os.getpid()}"
    shortened(options.model, options.layers, directory)
    try:
        began_s = time.perf_counter()
        size = write_checkpoint(directory)
        print(f"{size / 1e9:.1f} GB written in {time.perf_counter() - began_s:.1f} s", flush=True)
        context = mp.get_context("spawn")
        together, rows = context.Barrier(options.ranks), context.SimpleQueue()
        threads = max(1, (os.cpu_count() or 1) // options.ranks)
        mp.spawn(measure, (options.ranks, directory, threads, together, rows), options.ranks)
        found = sorted((rows.get() for _ in range(options.ranks)), key=lambda row: row["rank"])
        options.results.write_text(json.dumps({"model": options.model.name, "size_gb": size / 1e9, "ranks": found}))
        for row in found:
            print("  ".join(f"{key} {value:.2f}" for key, value in row.items()), flush=True)
    finally:
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()


if __name__ == "__main__":
    main()
