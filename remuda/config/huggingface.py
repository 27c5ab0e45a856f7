"""What every architecture's config.json holds alike, with the quirks of published checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from remuda.config.fields import Fields, read_json
from remuda.config.quant import read_quantization
from remuda.config.rope import read_rope
from remuda.kv.specs import AnyAttention
from remuda.protocol.errors import ConfigError

MAX_LAYERS, MAX_EXPERTS = 4096, 65536  # far above any model: a broken config must not fill the memory


def open_config(directory: Path) -> Fields:
    """config.json of a checkpoint directory; names at least one architecture, or ConfigError says what is wrong."""
    if not directory.is_dir():
        raise ConfigError(f"{directory} is not a directory: give the path of a checkpoint in Hugging Face's layout")
    root = Fields(read_json(directory / "config.json"), directory / "config.json")
    architectures = root.values.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise root.refuse("architectures", "is missing (a list with the model's class name is needed)")
    return root


def common_fields(root: Fields, text: Fields, directory: Path, dtype: str) -> dict[str, object]:
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
    theta, scaling = read_rope(text)
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
        "quant": read_quantization(root),
        "bos_token_id": text.get("bos_token_id", int, root.get("bos_token_id", int, None)),
        "eos_token_ids": text.ids("eos_token_id") or root.ids("eos_token_id"),
    }


def layer_types(text: Fields, default: list[str], known: Mapping[str, AnyAttention]) -> tuple[AnyAttention, ...]:
    """The attention of each layer by the names of `layer_types`; `default` is what its absence means."""
    names = text.values.get("layer_types") or default
    if not isinstance(names, list) or len(names) != len(default) or not all(name in known for name in names):
        raise text.refuse("layer_types", f"must name {' or '.join(known)} for each of {len(default)} layers")
    return tuple(known[name] for name in names)


def _checkpoint_dtype(root: Fields, text: Fields) -> str:
    for fields in (text, root):
        for key in ("dtype", "torch_dtype"):
            if key in fields:
                return fields.get(key, str).removeprefix("torch.")
    return "float32"


def _compute_dtype(asked: str, checkpoint: str) -> str:
    dtype = checkpoint if asked == "auto" else {"float": "float32", "half": "float16"}.get(asked, asked)
    if dtype not in ("bfloat16", "float16", "float32"):
        raise ConfigError(f"dtype {dtype} is not supported: choose --dtype bfloat16, float16 or float32")
    return dtype
