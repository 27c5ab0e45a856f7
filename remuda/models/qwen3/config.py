"""Qwen3's config.json."""

from __future__ import annotations

from pathlib import Path

import msgspec

from remuda.config.fields import Fields
from remuda.config.huggingface import MAX_LAYERS, common_fields
from remuda.config.model import LayerConfig, ModelConfig
from remuda.kv.specs import FullAttention


def qwen3_fields(root: Fields, directory: Path, dtype: str) -> dict[str, object]:
    """What the dense and the mixture-of-experts models read alike."""
    if root.get("use_sliding_window", bool, False):
        raise root.refuse("use_sliding_window", "must be false: sliding windows are not supported")
    layer = LayerConfig(FullAttention())
    return common_fields(root, root, directory, dtype) | {
        "head_dim": root.size("head_dim", 128),
        "intermediate_size": root.size("intermediate_size"),
        "rope_interleaved": False,
        "layers": (layer,) * root.size("num_hidden_layers", limit=MAX_LAYERS),
    }


def read_config(root: Fields, directory: Path, dtype: str) -> ModelConfig:
    return msgspec.convert(qwen3_fields(root, directory, dtype), ModelConfig)
