"""The demo model's shape: a Maverick in small, in the published config layout."""

from __future__ import annotations

from typing import Any

# In the published tokenizer the special tokens begin at id 200000; here they follow the ordinary ones, in that order.
SPECIAL_TOKENS: tuple[str, ...] = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>",
    *(f"<|text_post_train_reserved_special_token_{i}|>" for i in range(6)),
    "<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>",
    *(f"<|text_post_train_reserved_special_token_{i}|>" for i in range(8, 69)),
    "<|image_start|>", "<|image_end|>", "<|vision_reserved_special_token_0|>", "<|vision_reserved_special_token_1|>",
    "<|tile_x_separator|>", "<|tile_y_separator|>",
    *(f"<|vision_reserved_special_token_{i}|>" for i in range(2, 6)),
    "<|image|>", "<|vision_reserved_special_token_6|>", "<|patch|>",
    *(f"<|vision_reserved_special_token_{i}|>" for i in range(7, 18)),
)  # fmt: skip

ORDINARY_TOKENS = 1600
VOCABULARY = ORDINARY_TOKENS + len(SPECIAL_TOKENS)
MAX_POSITIONS = 16384
CHUNK = 256


def special(token: str) -> int:
    return ORDINARY_TOKENS + SPECIAL_TOKENS.index(token)


BOS, EOT, PAD, PATCH = (special(t) for t in ("<|begin_of_text|>", "<|eot|>", "<|finetune_right_pad|>", "<|patch|>"))
STOPS = [special("<|end_of_text|>"), special("<|eom|>"), EOT]

TEXT: dict[str, Any] = {
    "attention_bias": False,
    "attention_chunk_size": CHUNK,
    "attention_dropout": 0.0,
    "attn_scale": 0.1,
    "attn_temperature_tuning": True,
    "bos_token_id": BOS,
    "eos_token_id": STOPS,
    "floor_scale": 512,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "interleave_moe_layer_step": 2,
    "intermediate_size": 384,
    "intermediate_size_mlp": 1024,
    "max_position_embeddings": MAX_POSITIONS,
    "model_type": "llama4_text",
    "num_attention_heads": 16,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 8,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "pad_token_id": PAD,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "router_aux_loss_coef": 0.01,
    "router_jitter_noise": 0.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_qk_norm": False,
    "vocab_size": VOCABULARY,
}

VISION: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 128,
    "image_size": 112,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "model_type": "llama4_vision_model",
    "multi_modal_projector_bias": False,
    "norm_eps": 1e-5,
    "num_attention_heads": 8,
    "num_channels": 3,
    "num_hidden_layers": 4,
    "patch_size": 14,
    "pixel_shuffle_ratio": 0.5,
    "projector_dropout": 0.0,
    "projector_input_dim": 256,
    "projector_output_dim": 256,
    "rope_theta": 10000,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "vision_output_dim": 256,
}


def config() -> dict[str, Any]:
    """config.json of the checkpoint."""
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "boi_token_index": special("<|image_start|>"),
        "eoi_token_index": special("<|image_end|>"),
        "image_token_index": PATCH,
        "model_type": "llama4",
        "text_config": TEXT,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "vision_config": VISION,
    }
