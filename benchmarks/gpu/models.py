"""Configurations of published sizes, for benchmarks with random weights.

    python benchmarks/gpu/models.py FOLDER [NAME ...]

Each becomes FOLDER/NAME/config.json, all that `--load-format dummy` reads. Llama 4 here is the text model alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Config = dict[str, Any]

_LLAMA3_8B: Config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "bos_token_id": 128000, "eos_token_id": 128001,
}  # fmt: skip
_LLAMA4: Config = {
    "architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text", "hidden_size": 5120,
    "intermediate_size": 8192, "intermediate_size_mlp": 16384, "num_attention_heads": 40, "num_key_value_heads": 8,
    "head_dim": 128, "num_experts_per_tok": 1, "attention_chunk_size": 8192, "attn_temperature_tuning": True,
    "floor_scale": 8192, "attn_scale": 0.1, "vocab_size": 202048, "rope_theta": 500000.0, "bos_token_id": 200000,
    "eos_token_id": [200001, 200007, 200008], "pad_token_id": 200018,
}  # fmt: skip
_EVERY: Config = {
    "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": False,
    "tie_word_embeddings": False, "initializer_range": 0.02,
}  # fmt: skip
_FP8_EXPERTS: Config = {
    "quantization_config": {
        "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True,
                                  "dynamic": True},
        }},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*router.*", "re:.*shared_expert.*",
                   "re:.*feed_forward.gate_proj.*", "re:.*feed_forward.up_proj.*", "re:.*feed_forward.down_proj.*"],
    }
}  # fmt: skip


def _llama4(layers: int, **changes: Any) -> Config:
    """The last of every four layers sees everything and has no rope."""
    return _LLAMA4 | {"num_hidden_layers": layers, "no_rope_layers": [int(i % 4 != 3) for i in range(layers)]} | changes


def _maverick(layers: int, **changes: Any) -> Config:
    return _llama4(layers, num_local_experts=128, interleave_moe_layer_step=2, use_qk_norm=False, **changes)


_SCOUT_ROPE = {"factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
               "original_max_position_embeddings": 8192, "rope_type": "llama3"}  # fmt: skip
CONFIGS: dict[str, Config] = {
    "llama3-8b": _LLAMA3_8B,
    "maverick-48l-fp8": _maverick(48, max_position_embeddings=1 << 20) | _FP8_EXPERTS,
    "maverick-24l-fp8": _maverick(24, max_position_embeddings=1 << 20) | _FP8_EXPERTS,
    # What one of eight TP ranks holds of Maverick, as a model of its own: what a rank costs without communication.
    "maverick-48l-tp8rank-fp8": _maverick(
        48, max_position_embeddings=1 << 20, num_attention_heads=5, num_key_value_heads=1, intermediate_size=1024,
        intermediate_size_mlp=2048, vocab_size=25256, bos_token_id=1, eos_token_id=2, pad_token_id=3,
    ) | _FP8_EXPERTS,
    "scout-48l": _llama4(
        48, num_local_experts=16, interleave_moe_layer_step=1, use_qk_norm=True, rope_scaling=_SCOUT_ROPE,
        max_position_embeddings=10 << 20,
    ),
}  # fmt: skip


def main(folder: str, *names: str) -> None:
    for name in names or CONFIGS:
        path = Path(folder) / name
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(CONFIGS[name] | _EVERY, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= set(CONFIGS):
        raise SystemExit(f"{__doc__}\nNames: {', '.join(CONFIGS)}")
    main(*sys.argv[1:])
