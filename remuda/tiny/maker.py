"""Write a whole tiny checkpoint directory: config, sharded safetensors, tokenizer, chat template, image settings."""

from __future__ import annotations

import json
import struct
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from remuda.protocol.errors import ConfigError
from remuda.tiny import configs, tensors
from remuda.tiny.tokenizer import LLAMA3_NAMES, LLAMA4_NAMES, ORDINARY_TOKENS, special_tokens, tokenizer_json
from remuda.weights.checkpoint import INDEX_FILE, SINGLE_FILE

KINDS = ("maverick", "maverick-text", "maverick-fp8", "scout", "scout-fp8", "llama3")
_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3"}
_REGEX_IGNORE = ["re:.*lm_head", "re:.*self_attn", "re:.*router", "re:.*vision_model", "re:.*multi_modal_projector"]
_LLAMA3_TEMPLATE = (
    "{{- bos_token -}}{%- for m in messages -%}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ (m['content'] | trim) + '<|eot_id|>' -}}{%- endfor -%}{%- if add_generation_prompt -%}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
)

Tensors = list[tuple[str, torch.Tensor]]


def make_tiny(
    kind: str,
    path: str | Path,
    seed: int = 0,
    dtype: str = "bfloat16",
    shards: int = 3,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint of `kind` (see KINDS) into directory `path`.

    Weights are random but fixed by `seed`; float32 stores the same bfloat16-rounded numbers. `text` and `vision` change
    values of the two configs, sizes included. The routed experts of maverick-fp8 are float8 with module names in
    `ignore`; scout-fp8 adds the shared experts and uses patterns.
    """
    if kind not in KINDS or dtype not in ("bfloat16", "float32"):
        raise ConfigError(f"cannot make {kind!r} in {dtype}: kinds are {', '.join(KINDS)}; bfloat16 or float32")
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    config, named = _build(kind, seed, text or {}, vision or {})
    if dtype == "float32":
        named = [(n, t.float() if t.dtype == torch.bfloat16 and not n.endswith("_scale") else t) for n, t in named]
    for part in (config, config.get("text_config", config)):
        part["torch_dtype"] = dtype
    _write_json(directory / "config.json", config)
    _write_shards(directory, named, shards)
    _write_tokenizer(directory, config, LLAMA3_NAMES if kind == "llama3" else LLAMA4_NAMES)
    if "vision_config" in config:
        _write_image_settings(directory, config["vision_config"])


def _build(kind: str, seed: int, text: dict[str, Any], vision: dict[str, Any]) -> tuple[dict[str, Any], Tensors]:
    family, _, variant = kind.partition("-")
    if family == "llama3":
        config = configs.llama3_config(text)
        return config, list(tensors.llama3_tensors(config, seed))
    if family == "maverick":
        config = configs.maverick_config(text, vision, text_only=variant == "text")
    else:
        config = configs.scout_config(text, vision)
    named = tensors.llama4_tensors(config, seed)
    if variant != "fp8":
        return config, list(named)
    quantized = list(tensors.quantize(named, also_shared=family == "scout"))
    scaled = {name.removesuffix("_scale") for name, _ in quantized if name.endswith("_scale")}
    plain = [
        n.removesuffix(".weight") for n, t in quantized if n.endswith(".weight") and t.dim() == 2 and n not in scaled
    ]
    linear = [name for name in plain if "embed" not in name or "patch_embedding" in name]
    return configs.fp8_config(config, linear if family == "maverick" else _REGEX_IGNORE), quantized


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_shards(directory: Path, named: Tensors, shards: int) -> None:
    """Files of about equal size, in order, with an index; a single file for one shard."""
    total, files, written = sum(tensor.nbytes for _, tensor in named), [[]], 0  # type: tuple[int, list[Tensors], int]
    for name, tensor in named:
        if written >= total * len(files) / shards:
            files.append([])
        files[-1].append((name, tensor))
        written += tensor.nbytes
    if len(files) == 1:
        _write_safetensors(directory / SINGLE_FILE, files[0])
        return
    weight_map = {}
    for number, part in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        _write_safetensors(directory / name, part)
        weight_map.update({tensor_name: name for tensor_name, _ in part})
    _write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_safetensors(path: Path, named: Tensors) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in named:
        end = offset + tensor.nbytes
        header[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, tensor in named:
            file.write(tensor.contiguous().view(torch.uint8).numpy().data)


def _write_tokenizer(directory: Path, config: dict[str, Any], names: dict[str, int]) -> None:
    text = config.get("text_config", config)
    tokens = special_tokens(names)
    bos, eos, pad = (
        tokens[0],
        tokens[text["eos_token_id"][-1] - ORDINARY_TOKENS],
        next(t for t in tokens if "_pad" in t),
    )
    if names is LLAMA4_NAMES:
        template = (
            (resources.files("remuda") / "assets" / "llama4_chat_template.jinja").read_text(encoding="utf-8").rstrip()
        )
    else:
        template = _LLAMA3_TEMPLATE
    content = tokenizer_json(names)
    _write_json(directory / "tokenizer.json", content)
    named = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    added = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in content["added_tokens"]}
    _write_json(
        directory / "tokenizer_config.json",
        {
            "added_tokens_decoder": added, **named, "chat_template": template, "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"], "model_max_length": text["max_position_embeddings"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )  # fmt: skip
    _write_json(directory / "special_tokens_map.json", named)
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    generation = {"bos_token_id": text["bos_token_id"], "eos_token_id": text["eos_token_id"], "do_sample": True}
    _write_json(directory / "generation_config.json", generation | {"temperature": 0.6, "top_p": 0.9})


def _write_image_settings(directory: Path, vision: dict[str, Any]) -> None:
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
    _write_json(directory / "preprocessor_config.json", preprocessor)
    _write_json(directory / "processor_config.json", processor)
