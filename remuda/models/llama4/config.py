"""Llama 4's config.json: text_config and vision_config, or the text model's alone."""

from __future__ import annotations

from pathlib import Path

import msgspec

from remuda.config.fields import Fields, read_json
from remuda.config.huggingface import MAX_EXPERTS, MAX_LAYERS, common_fields, layer_types
from remuda.config.model import ImageTokens, LayerConfig, ModelConfig, MoEConfig, VisionConfig
from remuda.kv.specs import ChunkedLocal, FullAttention

# Places of the image tokens relative to <|patch|> (image_token_index) in every Llama 4 vocabulary.
_IMAGE_OFFSET, _TILE_X_OFFSET, _TILE_Y_OFFSET = -2, -8, -7


def read_config(root: Fields, directory: Path, dtype: str) -> ModelConfig:
    """Llama4ForConditionalGeneration (text_config, vision_config), or the text model with a flat config."""
    text = root.child("text_config") if "text_config" in root else root
    multimodal = root.values["architectures"][0] == "Llama4ForConditionalGeneration"
    vision = _vision(root.child("vision_config"), directory) if multimodal else None
    layers = _layers(text)
    expert_size = text.size("intermediate_size")
    moe = None
    if any(layer.moe for layer in layers):
        experts, top_k = text.size("num_local_experts", limit=MAX_EXPERTS), text.size("num_experts_per_tok", 1)
        if top_k > experts:
            raise text.refuse("num_experts_per_tok", f"({top_k}) exceeds num_local_experts ({experts})")
        moe = MoEConfig(experts, top_k, intermediate_size=expert_size, shared_intermediate_size=expert_size)
    return msgspec.convert(
        common_fields(root, text, directory, dtype)
        | {
            "intermediate_size": text.size("intermediate_size_mlp"),
            "rope_interleaved": True,
            "layers": layers,
            "temperature_floor": text.get("floor_scale", float, 8192.0),
            "temperature_scale": text.get("attn_scale", float, 0.1),
            "moe": moe,
            "vision": vision,
            "image_tokens": _image_tokens(root) if vision else None,
        },
        ModelConfig,
    )


def _layers(text: Fields) -> tuple[LayerConfig, ...]:
    count = text.size("num_hidden_layers", limit=MAX_LAYERS)
    interval = text.size("no_rope_layer_interval", 4)
    # Despite its name, no_rope_layers[i] == 1 says that layer i HAS rope.
    rope = [bool(flag) for flag in text.ids("no_rope_layers")] or [(i + 1) % interval != 0 for i in range(count)]
    if len(rope) != count:
        raise text.refuse("no_rope_layers", f"has {len(rope)} entries for {count} layers")
    full = FullAttention()
    local = ChunkedLocal(text.size("attention_chunk_size")) if "attention_chunk_size" in text else full
    default = ["chunked_attention" if flag else "full_attention" for flag in rope]
    attention = layer_types(text, default, {"chunked_attention": local, "full_attention": full})
    if text.values.get("moe_layers") is not None:
        moe = set(text.ids("moe_layers"))
    else:
        step = text.size("interleave_moe_layer_step")
        moe = set(range(step - 1, count, step))
    tuning = text.values.get("attn_temperature_tuning", True)  # an integer (4) in some published configs
    qk_norm = text.get("use_qk_norm", bool, True)
    return tuple(
        LayerConfig(
            attention=attention[i],
            rope=rope[i],
            qk_norm=qk_norm and rope[i],
            temperature_tuning=bool(tuning) and not rope[i],
            moe=i in moe,
        )
        for i in range(count)
    )


def _vision(vision: Fields, directory: Path) -> VisionConfig:
    if vision.get("vision_feature_select_strategy", str, "default") != "default":
        raise vision.refuse("vision_feature_select_strategy", "must be 'default'")
    if vision.get("hidden_act", str, "gelu") != "gelu":
        raise vision.refuse("hidden_act", "must be 'gelu'")
    preprocessor = directory / "preprocessor_config.json"
    tiles = Fields(read_json(preprocessor), preprocessor).size("max_patches", 16) if preprocessor.exists() else 16
    rope = vision.child("rope_parameters") if "rope_parameters" in vision else vision
    config = VisionConfig(
        hidden_size=vision.size("hidden_size"),
        intermediate_size=vision.size("intermediate_size"),
        num_layers=vision.size("num_hidden_layers", limit=MAX_LAYERS),
        num_heads=vision.size("num_attention_heads"),
        image_size=vision.size("image_size"),
        patch_size=vision.size("patch_size"),
        num_channels=vision.size("num_channels", 3),
        pixel_shuffle_ratio=vision.get("pixel_shuffle_ratio", float, 0.5),
        projector_input_dim=vision.size("projector_input_dim"),
        projector_output_dim=vision.size("projector_output_dim"),
        output_dim=vision.size("vision_output_dim"),
        rope_theta=rope.get("rope_theta", float, 10000.0),
        norm_eps=vision.get("norm_eps", float, 1e-5),
        max_tiles=tiles,
    )
    if config.image_size % config.patch_size:
        raise vision.refuse("image_size", f"({config.image_size}) must be a multiple of patch_size {config.patch_size}")
    if config.hidden_size % (4 * config.num_heads):
        raise vision.refuse("hidden_size", f"must be a multiple of 4 x {config.num_heads} heads")
    factor = round(1 / config.pixel_shuffle_ratio) if config.pixel_shuffle_ratio > 0 else 0
    if factor < 1 or config.image_size // config.patch_size % factor:
        raise vision.refuse("pixel_shuffle_ratio", "must be 1/n with n dividing the patches of a tile's side")
    if config.intermediate_size != config.hidden_size * factor**2:
        raise vision.refuse("intermediate_size", f"must be hidden_size x {factor**2} (the pixel-shuffled width)")
    if not config.projector_input_dim == config.projector_output_dim == config.output_dim:
        raise vision.refuse("projector_output_dim", "must equal projector_input_dim and vision_output_dim")
    return config


def _image_tokens(root: Fields) -> ImageTokens:
    patch = root.get("image_token_index", int, root.get("image_token_id", int, None))
    if patch is None:
        raise root.refuse("image_token_index", "is missing (the id of <|patch|> is needed)")
    return ImageTokens(
        image_start=root.get("boi_token_index", int),
        image_end=root.get("eoi_token_index", int),
        image=patch + _IMAGE_OFFSET,
        patch=patch,
        tile_x=patch + _TILE_X_OFFSET,
        tile_y=patch + _TILE_Y_OFFSET,
    )
