"""The GPUs of this machine as the driver's management library (NVML) sees them: no torch, no CUDA context.

A process that only plans must not take a gigabyte of each card for a context of its own.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from remuda.config.model import ModelConfig
from remuda.protocol.dtypes import VALUE_BYTES


@dataclass(frozen=True)
class GpuMemory:
    """One device that CUDA_VISIBLE_DEVICES shows."""

    name: str
    total_bytes: int
    free_bytes: int


# Of a card, beside weights, KV pages and the largest step: a context, NCCL's buffers, graphs, workspaces.
RESERVE_BYTES = 2 << 30
_DRAWING_BYTES = 1 << 30  # copies of those logits that are drawn from at once
_BYTES_PER_LOGIT = 16  # float32: of the ranks, together, adjusted


def step_bytes(model: ModelConfig, tp_size: int, tokens: int, rows: int) -> int:
    """What a step of so many tokens, of which so many rows are drawn, takes on a GPU: an estimate on the safe side.

    A rank measures it once the weights are in.
    """
    attention = (model.num_heads * 2 + model.num_kv_heads * 2) * model.head_dim // tp_size
    widest = model.intermediate_size // tp_size
    if model.moe is not None:
        widest = max(widest, model.moe.top_k * model.moe.intermediate_size // tp_size + model.moe.num_experts)
    width = 6 * model.hidden_size + attention + 3 * widest
    logits = rows * model.vocab_size * _BYTES_PER_LOGIT
    return tokens * width * VALUE_BYTES[model.dtype] + logits + _DRAWING_BYTES


class _MemoryInfo(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = [("total", ctypes.c_uint64), ("free", ctypes.c_uint64), ("used", ctypes.c_uint64)]


def visible_gpus() -> list[GpuMemory]:
    """In CUDA's order; none where there is no driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    if nvml.nvmlInit_v2():
        return []
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return []
        handles = [_handle(nvml, index) for index in range(count.value)]
        every = [handle for handle in handles if handle is not None]
        return [_memory(nvml, handle) for handle in _chosen(nvml, every)]
    finally:
        nvml.nvmlShutdown()


def torch_has_cuda() -> bool:
    """Whether the installed torch is built for CUDA, told by its version file: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py")
    return version.exists() and re.search(r"^cuda\b.*= *['\"]\d", version.read_text(), re.MULTILINE) is not None


def _handle(nvml: ctypes.CDLL, index: int) -> ctypes.c_void_p | None:
    handle = ctypes.c_void_p()
    return None if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) else handle


def _chosen(nvml: ctypes.CDLL, handles: list[ctypes.c_void_p]) -> list[ctypes.c_void_p]:
    """What CUDA_VISIBLE_DEVICES leaves: indices or the beginnings of UUIDs, up to the first that names nothing."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return handles
    chosen = []
    for name in (entry.strip() for entry in wanted.split(",")):
        if name.isdigit() and int(name) < len(handles):
            chosen.append(handles[int(name)])
            continue
        named = [handle for handle in handles if name and _text(nvml.nvmlDeviceGetUUID, handle).startswith(name)]
        if len(named) != 1:
            break
        chosen.append(named[0])
    return chosen


def _text(query: ctypes._NamedFuncPointer, handle: ctypes.c_void_p) -> str:
    buffer = ctypes.create_string_buffer(96)
    return "" if query(handle, buffer, len(buffer)) else buffer.value.decode(errors="replace")


def _memory(nvml: ctypes.CDLL, handle: ctypes.c_void_p) -> GpuMemory:
    info = _MemoryInfo()
    nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(info))
    return GpuMemory(_text(nvml.nvmlDeviceGetName, handle), info.total, info.free)
