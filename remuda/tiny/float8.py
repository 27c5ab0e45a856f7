"""Float8 checkpoints as compressed-tensors publishes them: weights, scales per output channel, config."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from remuda.models.tiny import Config, Float8

Named = Iterator[tuple[str, torch.Tensor]]
_FP8_MAX = 448.0


def quantize(tensors: Named, layout: Float8) -> Named:
    """What `layout` names becomes a float8 weight and a bfloat16 scale; fused experts do per expert and projection."""
    for name, tensor in tensors:
        if not re.fullmatch(layout.tensors, name):
            yield name, tensor
        elif tensor.dim() == 3:
            prefix, kind = name.rsplit(".", 1)
            for expert, weight in enumerate(tensor.mT):  # [out, in]
                halves = zip(("gate_proj", "up_proj"), weight.chunk(2), strict=True)
                for part, rows in halves if kind == "gate_up_proj" else [("down_proj", weight)]:
                    yield from _quantized(f"{prefix}.{expert}.{part}", rows)
        else:
            yield from _quantized(name.removesuffix(".weight"), tensor)


def _quantized(module: str, weight: torch.Tensor) -> Named:
    largest = weight.float().abs().amax(dim=1, keepdim=True)
    scale = (largest / _FP8_MAX).clamp(min=1e-12).to(torch.bfloat16)
    rounded = (weight.float() / scale.float()).clamp(-_FP8_MAX, _FP8_MAX)
    yield f"{module}.weight", rounded.to(torch.float8_e4m3fn).contiguous()
    yield f"{module}.weight_scale", scale


def unquantized_linears(tensors: list[tuple[str, torch.Tensor]]) -> list[str]:
    """Modules with a plain two-dimensional weight that is no embedding: what quantization_config.ignore may list."""
    scaled = {name.removesuffix("_scale") for name, _ in tensors if name.endswith("_scale")}
    names = [n for n, t in tensors if n.endswith(".weight") and t.dim() == 2 and n not in scaled]
    return [name.removesuffix(".weight") for name in names if "embed" not in name or "patch_embedding" in name]


def fp8_config(config: Config, ignore: list[str]) -> Config:
    """`config` with the quantization_config of published FP8 checkpoints."""
    scheme = {"num_bits": 8, "symmetric": True, "type": "float", "group_size": None, "actorder": None}
    group = {
        "input_activations": scheme | {"dynamic": True, "observer": None, "strategy": "token"},
        "output_activations": None,
        "targets": ["Linear"],
        "weights": scheme | {"dynamic": False, "observer": "minmax", "strategy": "channel"},
    }
    quantization = {
        "config_groups": {"group_0": group}, "format": "float-quantized", "ignore": ignore, "kv_cache_scheme": None,
        "quant_method": "compressed-tensors", "quantization_status": "compressed",
    }  # fmt: skip
    return config | {"quantization_config": quantization}
