"""Qwen3's config.json."""

from __future__ import annotations

from pathlib import Path

import msgspec

from remuda.config.fields import Fields
from remuda.config.huggingface import MAX_LAYERS, common_fields, layer_types
from remuda.config.model import LayerConfig, ModelConfig
from remuda.kv.specs import AnyAttention, FullAttention, SlidingWindow


def qwen3_fields(root: Fields, directory: Path, dtype: str) -> dict[str, object]:
    """What the dense and the mixture-of-experts models read alike."""
    return common_fields(root, root, directory, dtype) | {
        "head_dim": root.size("head_dim", 128),
        "intermediate_size": root.size("intermediate_size"),
        "rope_interleaved": False,
        "layers": tuple(LayerConfig(attention) for attention in _attention(root)),
    }


def _attention(root: Fields) -> tuple[AnyAttention, ...]:
    """Full, but for the layers from `max_window_layers` on where sliding windows are switched on."""
    count = root.size("num_hidden_layers", limit=MAX_LAYERS)
    known: dict[str, AnyAttention] = {"full_attention": FullAttention()}
    first = count
    if root.get("use_sliding_window", bool, False) and "sliding_window" in root:
        known["sliding_attention"] = SlidingWindow(root.size("sliding_window"))
        first = root.get("max_window_layers", int, 28)
    return layer_types(root, ["full_attention" if i < first else "sliding_attention" for i in range(count)], known)


def read_config(root: Fields, directory: Path, dtype: str) -> ModelConfig:
    return msgspec.convert(qwen3_fields(root, directory, dtype), ModelConfig)
