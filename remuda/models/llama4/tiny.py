"""Tiny Llama 4: Maverick (dense and MoE layers in turn) and Scout (MoE everywhere, QK norm, scaled rope)."""

from __future__ import annotations

import copy
import math

from remuda.models.tiny import (
    Config,
    Embedding,
    Float8,
    Head,
    Random,
    Router,
    SpecialTokens,
    Tensors,
    TinyKind,
    attention,
    linear,
    mlp,
    no_vision,
    norm,
)

TOKENS = SpecialTokens(
    {
        "<|begin_of_text|>": 0, "<|end_of_text|>": 1, "<|fim_prefix|>": 2, "<|fim_middle|>": 3, "<|fim_suffix|>": 4,
        "<|header_start|>": 5, "<|header_end|>": 6, "<|eom|>": 7, "<|eot|>": 8, "<|step|>": 9, "<|python_start|>": 16,
        "<|python_end|>": 17, "<|finetune_right_pad|>": 18, "<|image_start|>": 80, "<|image_end|>": 81,
        "<|tile_x_separator|>": 84, "<|tile_y_separator|>": 85, "<|image|>": 90, "<|patch|>": 92,
    },
    bos="<|begin_of_text|>", end_of_turn="<|eot|>", pad="<|finetune_right_pad|>",
    template="demo/chat_template.jinja",
)  # fmt: skip
_TEXT: Config = {
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
_SCOUT_CHANGES: Config = {
    "interleave_moe_layer_step": 1, "use_qk_norm": True,
    "rope_scaling": {"factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 64, "rope_type": "llama3"},
}  # fmt: skip
_MAVERICK_CHANGES: Config = {"interleave_moe_layer_step": 2, "use_qk_norm": False, "rope_scaling": None}


def _text_config(changes: Config) -> Config:
    ids = {
        "bos_token_id": TOKENS["<|begin_of_text|>"],
        "eos_token_id": [TOKENS[name] for name in ("<|end_of_text|>", "<|eom|>", "<|eot|>")],
        "pad_token_id": TOKENS["<|finetune_right_pad|>"],
        "vocab_size": TOKENS.vocab_size,
    }
    return copy.deepcopy(_TEXT) | ids | changes


def _multimodal_config(text_changes: Config, vision_changes: Config) -> Config:
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "boi_token_index": TOKENS["<|image_start|>"],
        "eoi_token_index": TOKENS["<|image_end|>"],
        "image_token_index": TOKENS["<|patch|>"],
        "model_type": "llama4",
        "text_config": _text_config(text_changes),
        "transformers_version": "4.51.0",
        "vision_config": _VISION | vision_changes,
    }


def maverick_config(text_changes: Config, vision_changes: Config) -> Config:
    """Which layers have no rope, and the temperature switch, are left to defaults."""
    return _multimodal_config(_MAVERICK_CHANGES | text_changes, vision_changes)


def maverick_text_config(text_changes: Config, vision_changes: Config) -> Config:
    """The flat config of the text model alone."""
    no_vision(vision_changes)
    text = _text_config(_MAVERICK_CHANGES | text_changes)
    return text | {"architectures": ["Llama4ForCausalLM"], "transformers_version": "4.51.0"}


def scout_config(text_changes: Config, vision_changes: Config) -> Config:
    """With explicit lists of layers."""
    changes = copy.deepcopy(_SCOUT_CHANGES) | text_changes
    count = (_TEXT | changes)["num_hidden_layers"]
    lists = {
        "attn_temperature_tuning": True,
        "moe_layers": list(range(count)),
        "no_rope_layers": [int((i + 1) % 4 != 0) for i in range(count)],
    }
    return _multimodal_config(lists | changes, vision_changes)


def _tensors(config: Config) -> Tensors:
    """The bfloat16 layout, with fused experts; text alone for a flat config."""
    text = config.get("text_config", config)
    hidden, vocab = text["hidden_size"], text["vocab_size"]
    if "vision_config" in config:
        yield from _vision_tensors(config["vision_config"], hidden)
    prefix = "language_model." if "text_config" in config else ""
    yield Embedding(f"{prefix}model.embed_tokens.weight", (vocab, hidden), clusters=text["num_local_experts"])
    for index in range(text["num_hidden_layers"]):
        layer = f"{prefix}model.layers.{index}"
        yield from attention(layer, text, text["head_dim"])
        if (index + 1) % text["interleave_moe_layer_step"] == 0:
            yield from _moe_tensors(f"{layer}.feed_forward", text)
        else:
            yield from mlp(f"{layer}.feed_forward", hidden, text["intermediate_size_mlp"])
    yield from norm(f"{prefix}model.norm", hidden)
    yield Head(f"{prefix}lm_head.weight", (vocab, hidden), TOKENS[TOKENS.end_of_turn])


def _moe_tensors(prefix: str, text: Config) -> Tensors:
    """Fused experts are applied as x @ W: [experts, in, out], the gate's columns before the up projection's."""
    experts, hidden, inner = text["num_local_experts"], text["hidden_size"], text["intermediate_size"]
    yield Random(f"{prefix}.experts.gate_up_proj", (experts, hidden, 2 * inner), 1.0 / math.sqrt(hidden))
    yield Random(f"{prefix}.experts.down_proj", (experts, inner, hidden), 1.0 / math.sqrt(inner))
    yield Router(f"{prefix}.router.weight", (experts, hidden))
    yield from mlp(f"{prefix}.shared_expert", hidden, inner)


def _vision_tensors(vision: Config, hidden: int) -> Tensors:
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    side = vision["image_size"] // vision["patch_size"]
    yield Random("vision_model.class_embedding", (width,), 1.0)
    yield Random("vision_model.positional_embedding_vlm", (side * side + 1, width), 0.5)
    patch = vision["num_channels"] * vision["patch_size"] ** 2
    yield from linear("vision_model.patch_embedding.linear", width, patch, 2.0)
    for name in ("layernorm_pre", "layernorm_post"):
        yield from norm(f"vision_model.{name}", width, bias=True)
    for index in range(vision["num_hidden_layers"]):
        layer = f"vision_model.model.layers.{index}"
        for name in "qkvo":
            yield from linear(f"{layer}.self_attn.{name}_proj", width, width, bias=True)
        yield from linear(f"{layer}.mlp.fc1", inner, width, bias=True)
        yield from linear(f"{layer}.mlp.fc2", width, inner, bias=True)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield from norm(f"{layer}.{name}", width, bias=True)
    adapter, middle = "vision_model.vision_adapter.mlp", vision["projector_input_dim"]
    yield from linear(f"{adapter}.fc1", middle, inner, 1.5)
    yield from linear(f"{adapter}.fc2", middle, middle, 1.5)
    yield from linear("multi_modal_projector.linear_1", hidden, vision["vision_output_dim"], 2.0)


def _image_settings(config: Config) -> dict[str, Config]:
    vision = config["vision_config"]
    size = vision["image_size"]
    preprocessor = {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "Llama4ImageProcessorFast", "image_std": [0.5, 0.5, 0.5],
        "max_patches": 16, "processor_class": "Llama4Processor", "resample": 2, "rescale_factor": 1 / 255,
        "resize_to_max_canvas": False, "size": {"height": size, "width": size},
    }  # fmt: skip
    processor = {
        "fake_image_token": "<|image|>", "image_token": "<|image|>", "patch_size": vision["patch_size"],
        "pixel_shuffle_ratio": vision["pixel_shuffle_ratio"], "processor_class": "Llama4Processor",
    }  # fmt: skip
    return {"preprocessor_config.json": preprocessor, "processor_config.json": processor}


_ROUTED = Float8(r".*\.experts\.(gate_up|down)_proj")
_ROUTED_AND_SHARED = Float8(
    r".*\.feed_forward\..*_proj(\.weight)?",
    ignore=("re:.*lm_head", "re:.*self_attn", "re:.*router", "re:.*vision_model", "re:.*multi_modal_projector"),
)
KINDS = {
    "maverick": TinyKind(
        "Llama 4 Maverick: dense and MoE layers in turn, chunked attention, images",
        maverick_config, _tensors, TOKENS, files=_image_settings,
    ),
    "maverick-fp8": TinyKind(
        "the same with routed experts in FP8", maverick_config, _tensors, TOKENS, _ROUTED, _image_settings
    ),
    "scout": TinyKind(
        "Llama 4 Scout: MoE in every layer, QK norm, scaled rope, images",
        scout_config, _tensors, TOKENS, files=_image_settings,
    ),
    "scout-fp8": TinyKind(
        "the same with routed and shared experts in FP8", scout_config, _tensors, TOKENS, _ROUTED_AND_SHARED,
        _image_settings,
    ),
}  # fmt: skip
TEXT_KINDS = {
    "maverick-text": TinyKind(
        "Llama 4 Maverick without its vision tower", maverick_text_config, _tensors, TOKENS
    )
}  # fmt: skip
