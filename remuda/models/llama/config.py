"""Llama 2's and 3.x's config.json."""

from __future__ import annotations

from pathlib import Path

import msgspec

from remuda.config.fields import Fields
from remuda.config.huggingface import MAX_LAYERS, common_fields
from remuda.config.model import LayerConfig, ModelConfig
from remuda.kv.specs import FullAttention


def read_config(root: Fields, directory: Path, dtype: str) -> ModelConfig:
    """LlamaForCausalLM: Llama 2 and 3.x."""
    layer = LayerConfig(FullAttention())
    return msgspec.convert(
        common_fields(root, root, directory, dtype)
        | {
            "intermediate_size": root.size("intermediate_size"),
            "rope_interleaved": False,
            "layers": (layer,) * root.size("num_hidden_layers", limit=MAX_LAYERS),
        },
        ModelConfig,
    )
