"""Mixtral's config.json."""

from __future__ import annotations

from pathlib import Path

import msgspec

from remuda.config.fields import Fields
from remuda.config.huggingface import MAX_EXPERTS, MAX_LAYERS, common_fields
from remuda.config.model import LayerConfig, ModelConfig, MoEConfig
from remuda.kv.specs import AnyAttention, FullAttention, SlidingWindow


def read_config(root: Fields, directory: Path, dtype: str) -> ModelConfig:
    """`intermediate_size` is an expert's; a window, where there is one, holds in every layer."""
    attention: AnyAttention = FullAttention()
    if "sliding_window" in root:
        attention = SlidingWindow(root.size("sliding_window"))
    experts, top_k = root.size("num_local_experts", 8, limit=MAX_EXPERTS), root.size("num_experts_per_tok", 2)
    if top_k > experts:
        raise root.refuse("num_experts_per_tok", f"({top_k}) exceeds num_local_experts ({experts})")
    inner = root.size("intermediate_size")
    moe = MoEConfig(experts, top_k, intermediate_size=inner, shared_intermediate_size=0, renormalize=True)
    own = {
        "intermediate_size": inner,
        "rope_interleaved": False,
        "layers": (LayerConfig(attention, moe=True),) * root.size("num_hidden_layers", limit=MAX_LAYERS),
        "moe": moe,
    }
    return msgspec.convert(common_fields(root, root, directory, dtype) | own, ModelConfig)
