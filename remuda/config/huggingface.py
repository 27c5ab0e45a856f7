"""Hugging Face's config.json, with the quirks of published checkpoints, read into one ModelConfig."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from remuda.config.fields import Fields, read_json
from remuda.config.model import (
    AttentionKind,
    ImageTokens,
    LayerConfig,
    ModelConfig,
    MoEConfig,
    QuantConfig,
    RopeScaling,
    VisionConfig,
)
from remuda.config.quant import QuantRule
from remuda.protocol.errors import ConfigError

# Places of the image tokens relative to <|patch|> (image_token_index) in every Llama 4 vocabulary.
_IMAGE_OFFSET, _TILE_X_OFFSET, _TILE_Y_OFFSET = -2, -8, -7
_MAX_LAYERS, _MAX_EXPERTS = 4096, 65536  # far above any model: a broken config must not fill the memory
_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_model_config(path: str | Path, dtype: str = "auto") -> ModelConfig:
    """The model in checkpoint directory `path`, to be computed in `dtype` (auto, bfloat16 or float32).

    Raises ConfigError naming the file and the field that is missing, malformed or asks for something unsupported.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise ConfigError(f"{directory} is not a directory: give the path of a checkpoint in Hugging Face's layout")
    root = Fields(read_json(directory / "config.json"), directory / "config.json")
    architectures = root.values.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise root.refuse("architectures", "is missing (a list with the model's class name is needed)")
    reader = _READERS.get(str(architectures[0]))
    if reader is None:
        raise root.refuse("architectures", f"{architectures[0]!r} is not supported; supported: {', '.join(_READERS)}")
    return _with_generation_config(_with_quantized_parts(reader(root, directory, dtype)), directory)


def _with_quantized_parts(config: ModelConfig) -> ModelConfig:
    """Each layer's parts that the checkpoint keeps in float8, told by one module of each: parts are quantized whole."""
    rule = QuantRule(config.quant)
    if not rule.quantized:
        return config
    root = "language_model.model" if config.architecture == "Llama4ForConditionalGeneration" else "model"
    feed_forward = "mlp" if config.architecture == "LlamaForCausalLM" else "feed_forward"

    def parts(index: int, layer: LayerConfig) -> tuple[str, ...]:
        prefix = f"{root}.layers.{index}"
        modules = {"attention": f"{prefix}.self_attn.q_proj", "dense": f"{prefix}.{feed_forward}.gate_proj"}
        if layer.moe:
            modules["shared_expert"] = f"{prefix}.{feed_forward}.shared_expert.gate_proj"
            modules["routed_experts"] = f"{prefix}.{feed_forward}.experts.0.gate_proj"
            del modules["dense"]
        return tuple(part for part, module in modules.items() if rule.covers(module))

    layers = tuple(msgspec.structs.replace(layer, fp8=parts(index, layer)) for index, layer in enumerate(config.layers))
    return msgspec.structs.replace(config, layers=layers)


def _common(root: Fields, text: Fields, directory: Path, dtype: str) -> dict[str, object]:
    """Fields that every architecture reads alike."""
    if text.get("hidden_act", str, "silu") != "silu":
        raise text.refuse("hidden_act", f"must be 'silu', not {text.values['hidden_act']!r}")
    for key in ("attention_bias", "mlp_bias"):
        if text.get(key, bool, False):
            raise text.refuse(key, "must be false: biases are not supported")
    heads, hidden = text.size("num_attention_heads"), text.size("hidden_size")
    kv_heads = text.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise text.refuse("num_key_value_heads", f"({kv_heads}) must divide num_attention_heads ({heads})")
    if "head_dim" not in text and hidden % heads:
        raise text.refuse("head_dim", f"is missing, and hidden_size {hidden} is no multiple of {heads} heads")
    head_dim = text.size("head_dim", hidden // heads)
    if head_dim % 2:
        raise text.refuse("head_dim", f"must be even, not {head_dim}")
    theta, scaling = _rope(text)
    checkpoint_dtype = _checkpoint_dtype(root, text)
    return {
        "path": str(directory),
        "architecture": root.values["architectures"][0],
        "dtype": _compute_dtype(dtype, checkpoint_dtype),
        "checkpoint_dtype": checkpoint_dtype,
        "hidden_size": hidden,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": text.size("vocab_size"),
        "max_position_embeddings": text.size("max_position_embeddings"),
        "rms_norm_eps": text.get("rms_norm_eps", float),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": text.get("tie_word_embeddings", bool, False),
        "quant": _quantization(root),
        "bos_token_id": text.get("bos_token_id", int, root.get("bos_token_id", int, None)),
        "eos_token_ids": text.ids("eos_token_id") or root.ids("eos_token_id"),
    }


def _read_llama4(root: Fields, directory: Path, dtype: str) -> ModelConfig:
    """Llama4ForConditionalGeneration (text_config, vision_config), or the text model with a flat config."""
    text = root.child("text_config") if "text_config" in root else root
    multimodal = root.values["architectures"][0] == "Llama4ForConditionalGeneration"
    vision = _vision(root.child("vision_config"), directory) if multimodal else None
    layers = _llama4_layers(text)
    expert_size = text.size("intermediate_size")
    moe = None
    if any(layer.moe for layer in layers):
        experts, top_k = text.size("num_local_experts", limit=_MAX_EXPERTS), text.size("num_experts_per_tok", 1)
        if top_k > experts:
            raise text.refuse("num_experts_per_tok", f"({top_k}) exceeds num_local_experts ({experts})")
        moe = MoEConfig(experts, top_k, intermediate_size=expert_size, shared_intermediate_size=expert_size)
    return msgspec.convert(
        _common(root, text, directory, dtype)
        | {
            "intermediate_size": text.size("intermediate_size_mlp"),
            "rope_interleaved": True,
            "layers": layers,
            "attention_chunk": text.size("attention_chunk_size", None),
            "temperature_floor": text.get("floor_scale", float, 8192.0),
            "temperature_scale": text.get("attn_scale", float, 0.1),
            "moe": moe,
            "vision": vision,
            "image_tokens": _image_tokens(root) if vision else None,
        },
        ModelConfig,
    )


def _llama4_layers(text: Fields) -> tuple[LayerConfig, ...]:
    count = text.size("num_hidden_layers", limit=_MAX_LAYERS)
    interval = text.size("no_rope_layer_interval", 4)
    # Despite its name, no_rope_layers[i] == 1 says that layer i HAS rope.
    rope = [bool(flag) for flag in text.ids("no_rope_layers")] or [(i + 1) % interval != 0 for i in range(count)]
    if len(rope) != count:
        raise text.refuse("no_rope_layers", f"has {len(rope)} entries for {count} layers")
    kinds = text.values.get("layer_types") or ["chunked_attention" if flag else "full_attention" for flag in rope]
    if len(kinds) != count or not set(kinds) <= {"chunked_attention", "full_attention"}:
        raise text.refuse("layer_types", f"must name chunked_attention or full_attention for each of {count} layers")
    if text.values.get("moe_layers") is not None:
        moe = set(text.ids("moe_layers"))
    else:
        step = text.size("interleave_moe_layer_step")
        moe = set(range(step - 1, count, step))
    tuning = text.values.get("attn_temperature_tuning", True)  # an integer (4) in some published configs
    chunked = "attention_chunk_size" in text
    qk_norm = text.get("use_qk_norm", bool, True)
    return tuple(
        LayerConfig(
            attention=AttentionKind.CHUNKED if chunked and kinds[i] == "chunked_attention" else AttentionKind.FULL,
            rope=rope[i],
            qk_norm=qk_norm and rope[i],
            temperature_tuning=bool(tuning) and not rope[i],
            moe=i in moe,
        )
        for i in range(count)
    )


def _read_llama(root: Fields, directory: Path, dtype: str) -> ModelConfig:
    """LlamaForCausalLM: Llama 2 and 3.x."""
    layer = LayerConfig(AttentionKind.FULL, rope=True, qk_norm=False, temperature_tuning=False, moe=False)
    return msgspec.convert(
        _common(root, root, directory, dtype)
        | {
            "intermediate_size": root.size("intermediate_size"),
            "rope_interleaved": False,
            "layers": (layer,) * root.size("num_hidden_layers", limit=_MAX_LAYERS),
            "attention_chunk": None,
            "temperature_floor": 1.0,
            "temperature_scale": 0.0,
            "moe": None,
            "vision": None,
            "image_tokens": None,
        },
        ModelConfig,
    )


def _rope(text: Fields) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling` (before)."""
    key = "rope_parameters" if "rope_parameters" in text else "rope_scaling"
    theta = text.get("rope_theta", float, 10000.0)
    if key not in text:
        return theta, None
    rope = text.child(key)
    theta = rope.get("rope_theta", float, theta)
    kind = rope.get("rope_type", str, rope.get("type", str, "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise rope.refuse("rope_type", f"{kind!r} is not supported; supported: default, llama3")
    return theta, RopeScaling(
        factor=rope.get("factor", float),
        low_freq_factor=rope.get("low_freq_factor", float),
        high_freq_factor=rope.get("high_freq_factor", float),
        original_max_position_embeddings=rope.size("original_max_position_embeddings"),
    )


def _checkpoint_dtype(root: Fields, text: Fields) -> str:
    for fields in (text, root):
        for key in ("dtype", "torch_dtype"):
            if key in fields:
                return fields.get(key, str).removeprefix("torch.")
    return "float32"


def _compute_dtype(asked: str, checkpoint: str) -> str:
    dtype = checkpoint if asked == "auto" else {"float": "float32", "half": "float16"}.get(asked, asked)
    if dtype not in ("bfloat16", "float32"):
        raise ConfigError(f"dtype {dtype} is not supported: choose --dtype bfloat16 or --dtype float32")
    return dtype


def _quantization(root: Fields) -> QuantConfig | None:
    """compressed-tensors with static FP8 weights per output channel; anything else is refused."""
    if "quantization_config" not in root:
        return None
    quant = root.child("quantization_config")
    method, form = quant.get("quant_method", str), quant.get("format", str, "float-quantized")
    if method != "compressed-tensors" or form != "float-quantized":
        raise quant.refuse(
            "quant_method",
            f"{method!r} (format {form!r}) is not supported; supported: compressed-tensors, float-quantized",
        )
    if "kv_cache_scheme" in quant:
        raise quant.refuse("kv_cache_scheme", "must be null: quantized KV caches are not supported")
    groups = quant.child("config_groups")
    for name in groups.values:
        group = groups.child(name)
        weights = group.child("weights")
        scheme = tuple(weights.values.get(key) for key in ("num_bits", "type", "strategy", "symmetric"))
        if scheme != (8, "float", "channel", True):
            raise weights.refuse(
                "strategy", f"{scheme} is not supported; supported: 8-bit float, per channel, symmetric"
            )
        if group.values.get("targets") != ["Linear"]:
            raise group.refuse("targets", 'must be ["Linear"]; use "ignore" for what stays unquantized')
    ignore = quant.values.get("ignore") or []
    if not isinstance(ignore, list) or not all(isinstance(entry, str) for entry in ignore):
        raise quant.refuse("ignore", "must be a list of module names or re: patterns")
    return QuantConfig("compressed-tensors", tuple(ignore))


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
        num_layers=vision.size("num_hidden_layers", limit=_MAX_LAYERS),
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


def _with_generation_config(config: ModelConfig, directory: Path) -> ModelConfig:
    """End-of-sequence ids and sampling defaults of generation_config.json, where there is one.

    `"do_sample": false` means greedy, whatever temperature stands beside it, as in transformers.
    """
    path = directory / "generation_config.json"
    if not path.exists():
        return config
    generation = Fields(read_json(path), path)
    defaults = {key: generation.get(key, float) for key in _SAMPLING_DEFAULTS if key in generation}
    if not generation.get("do_sample", bool, True):
        defaults["temperature"] = 0.0
    return msgspec.structs.replace(
        config,
        eos_token_ids=generation.ids("eos_token_id") or config.eos_token_ids,
        generation_defaults=defaults,
    )


_READERS: dict[str, Callable[[Fields, Path, str], ModelConfig]] = {
    "Llama4ForConditionalGeneration": _read_llama4,
    "Llama4ForCausalLM": _read_llama4,
    "LlamaForCausalLM": _read_llama,
}
