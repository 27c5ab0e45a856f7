"""4-bit checkpoints as compressed-tensors publishes them: packed words, scales per group of inputs, config."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from remuda.models.tiny import Config, Int4

Named = Iterator[tuple[str, torch.Tensor]]


def quantize(tensors: Named, layout: Int4) -> Named:
    """What `layout` names becomes packed words, a bfloat16 scale per group and the shape it had."""
    for name, tensor in tensors:
        if not re.fullmatch(layout.tensors, name):
            yield name, tensor
            continue
        module, (outputs, inputs) = name.removesuffix(".weight"), tensor.shape
        grouped = tensor.float().view(outputs, -1, layout.group_size)
        scale = (grouped.abs().amax(2) / 7.5).clamp(min=1e-12).to(torch.bfloat16)
        values = (grouped / scale.float()[..., None]).round().clamp(-8, 7).view(outputs, inputs)
        yield f"{module}.weight_packed", _pack(values.long())
        yield f"{module}.weight_scale", scale
        yield f"{module}.weight_shape", torch.tensor([outputs, inputs])


def _pack(values: torch.Tensor) -> torch.Tensor:
    """[N, K] of -8 ... 7 -> int32 [N, K / 8]: the first value in the lowest bits, stored as value + 8."""
    words = ((values + 8).unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)).sum(2)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def int4_config(config: Config, layout: Int4) -> Config:
    """`config` with the quantization_config of published checkpoints."""
    weights = {
        "actorder": None, "block_structure": None, "dynamic": False, "group_size": layout.group_size, "num_bits": 4,
        "observer": "minmax", "strategy": "group", "symmetric": True, "type": "int",
    }  # fmt: skip
    group = {"input_activations": None, "output_activations": None, "targets": ["Linear"], "weights": weights}
    quantization = {
        "config_groups": {"group_0": group}, "format": "pack-quantized", "ignore": list(layout.ignore),
        "kv_cache_scheme": None, "quant_method": "compressed-tensors", "quantization_status": "compressed",
    }  # fmt: skip
    return config | {"quantization_config": quantization}
