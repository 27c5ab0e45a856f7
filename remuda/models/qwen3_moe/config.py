"""Qwen3-MoE's config.json: Qwen3's, with experts in some or all layers."""

from __future__ import annotations

from pathlib import Path

import msgspec

from remuda.config.fields import Fields
from remuda.config.huggingface import MAX_EXPERTS
from remuda.config.model import LayerConfig, ModelConfig, MoEConfig
from remuda.models.qwen3.config import qwen3_fields


def read_config(root: Fields, directory: Path, dtype: str) -> ModelConfig:
    if root.get("use_sliding_window", bool, False):
        raise root.refuse("use_sliding_window", "must be false: windows are supported in the dense models only")
    config = msgspec.convert(qwen3_fields(root, directory, dtype), ModelConfig)
    layers = _with_experts(root, config.layers)
    moe = _experts(root) if any(layer.moe for layer in layers) else None
    return msgspec.structs.replace(config, layers=layers, moe=moe)


def _with_experts(root: Fields, layers: tuple[LayerConfig, ...]) -> tuple[LayerConfig, ...]:
    """Every `decoder_sparse_step`-th layer, but for those that `mlp_only_layers` names."""
    step, dense = root.size("decoder_sparse_step", 1), set(root.ids("mlp_only_layers"))
    return tuple(
        msgspec.structs.replace(layer, moe=(index + 1) % step == 0 and index not in dense)
        for index, layer in enumerate(layers)
    )


def _experts(root: Fields) -> MoEConfig:
    count = "num_local_experts" if "num_local_experts" in root else "num_experts"  # transformers 5 writes the former
    experts, top_k = root.size(count, limit=MAX_EXPERTS), root.size("num_experts_per_tok")
    if top_k > experts:
        raise root.refuse("num_experts_per_tok", f"({top_k}) exceeds {count} ({experts})")
    return MoEConfig(
        experts,
        top_k,
        intermediate_size=root.size("moe_intermediate_size"),
        shared_intermediate_size=0,
        renormalize=root.get("norm_topk_prob", bool, False),
    )
