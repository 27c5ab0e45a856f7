"""config.json of each kind of tiny checkpoint, with the keys (and the omissions) of the published ones."""

from __future__ import annotations

import copy
from typing import Any

from remuda.tiny.tokenizer import LLAMA3_NAMES, LLAMA4_NAMES, ORDINARY_TOKENS, special_tokens

Config = dict[str, Any]

_LLAMA4_TEXT: Config = {
    "attention_bias": False, "attention_chunk_size": 64, "attention_dropout": 0.0, "attn_scale": 0.1,
    "floor_scale": 16, "head_dim": 64, "hidden_act": "silu", "hidden_size": 256, "initializer_range": 0.02,
    "intermediate_size": 128, "intermediate_size_mlp": 512, "max_position_embeddings": 8192,
    "model_type": "llama4_text", "num_attention_heads": 8, "num_experts_per_tok": 1, "num_hidden_layers": 8,
    "num_key_value_heads": 4, "num_local_experts": 8, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0, "use_cache": True,
}  # fmt: skip
_VISION: Config = {
    "attention_dropout": 0.0, "hidden_act": "gelu", "hidden_size": 64, "image_size": 84, "initializer_range": 0.02,
    "intermediate_size": 256, "model_type": "llama4_vision_model", "multi_modal_projector_bias": False,
    "norm_eps": 1e-05, "num_attention_heads": 4, "num_channels": 3, "num_hidden_layers": 2, "patch_size": 14,
    "pixel_shuffle_ratio": 0.5, "projector_dropout": 0.0, "projector_input_dim": 96, "projector_output_dim": 96,
    "rope_theta": 10000, "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
    "vision_output_dim": 96,
}  # fmt: skip
_LLAMA3: Config = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu",
    "hidden_size": 256, "initializer_range": 0.02, "intermediate_size": 512, "max_position_embeddings": 8192,
    "mlp_bias": False, "model_type": "llama", "num_attention_heads": 8, "num_hidden_layers": 6,
    "num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 64, "rope_type": "llama3"},
    "tie_word_embeddings": False, "use_cache": True,
}  # fmt: skip
_SCOUT_CHANGES: Config = {
    "interleave_moe_layer_step": 1, "use_qk_norm": True,
    "rope_scaling": {"factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 64, "rope_type": "llama3"},
}  # fmt: skip
_MAVERICK_CHANGES: Config = {"interleave_moe_layer_step": 2, "use_qk_norm": False, "rope_scaling": None}


def llama4_config(text_changes: Config, vision_changes: Config, text_only: bool) -> Config:
    """A multimodal config, or the flat one of the text model alone."""
    ids = {name: ORDINARY_TOKENS + offset for name, offset in LLAMA4_NAMES.items()}
    text = copy.deepcopy(_LLAMA4_TEXT) | {
        "bos_token_id": ids["<|begin_of_text|>"],
        "eos_token_id": [ids["<|end_of_text|>"], ids["<|eom|>"], ids["<|eot|>"]],
        "pad_token_id": ids["<|finetune_right_pad|>"],
        "vocab_size": ORDINARY_TOKENS + len(special_tokens(LLAMA4_NAMES)),
    }
    text |= text_changes
    if text_only:
        return text | {"architectures": ["Llama4ForCausalLM"], "transformers_version": "4.51.0"}
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "boi_token_index": ids["<|image_start|>"],
        "eoi_token_index": ids["<|image_end|>"],
        "image_token_index": ids["<|patch|>"],
        "model_type": "llama4",
        "text_config": text,
        "transformers_version": "4.51.0",
        "vision_config": _VISION | vision_changes,
    }


def maverick_config(text_changes: Config, vision_changes: Config, text_only: bool = False) -> Config:
    """Interleaved dense and MoE layers; which layers have no rope, and the temperature switch, are left to defaults."""
    return llama4_config(_MAVERICK_CHANGES | text_changes, vision_changes, text_only)


def scout_config(text_changes: Config, vision_changes: Config) -> Config:
    """MoE everywhere, QK norm, scaled rope, and explicit lists of layers."""
    changes = copy.deepcopy(_SCOUT_CHANGES) | text_changes
    count = (_LLAMA4_TEXT | changes)["num_hidden_layers"]
    lists = {
        "attn_temperature_tuning": True,
        "moe_layers": list(range(count)),
        "no_rope_layers": [int((i + 1) % 4 != 0) for i in range(count)],
    }
    return llama4_config(lists | changes, vision_changes, text_only=False)


def llama3_config(changes: Config) -> Config:
    ids = {name: ORDINARY_TOKENS + offset for name, offset in LLAMA3_NAMES.items()}
    return (
        copy.deepcopy(_LLAMA3)
        | {
            "bos_token_id": ids["<|begin_of_text|>"],
            "eos_token_id": [ids["<|end_of_text|>"], ids["<|eom_id|>"], ids["<|eot_id|>"]],
            "transformers_version": "4.43.0",
            "vocab_size": ORDINARY_TOKENS + len(special_tokens(LLAMA3_NAMES)),
        }
        | changes
    )


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
