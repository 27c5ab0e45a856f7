"""Write a whole tiny checkpoint directory: config, sharded safetensors, tokenizer, chat template, image settings."""

from __future__ import annotations

import json
import struct
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from remuda.models.registry import TINY_KINDS
from remuda.models.tiny import Config, Float8, Int4, SpecialTokens, TinyKind
from remuda.protocol.errors import ConfigError
from remuda.tiny import float8, int4
from remuda.tiny.tensors import draw
from remuda.tiny.tokenizer import tokenizer_json
from remuda.weights.checkpoint import INDEX_FILE, SINGLE_FILE

_DTYPE_NAMES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
    torch.int32: "I32", torch.int64: "I64",
}  # fmt: skip

Tensors = list[tuple[str, torch.Tensor]]


def make_tiny(
    kind: str,
    path: str | Path,
    seed: int = 0,
    dtype: str = "bfloat16",
    shards: int = 3,
    text: Config | None = None,
    vision: Config | None = None,
) -> None:
    """Write a checkpoint of `kind` (see registry.TINY_KINDS) into directory `path`.

    Weights are random but fixed by `seed`; float32 stores the same bfloat16-rounded numbers. `text` and `vision` change
    values of the two configs, sizes included.
    """
    described = TINY_KINDS.get(kind)
    if described is None or dtype not in ("bfloat16", "float32"):
        raise ConfigError(f"cannot make {kind!r} in {dtype}: kinds are {', '.join(TINY_KINDS)}; bfloat16 or float32")
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    config, named = _build(described, seed, text or {}, vision or {})
    if dtype == "float32":
        named = [(n, t.float() if t.dtype == torch.bfloat16 and not n.endswith("_scale") else t) for n, t in named]
    for part in (config, config.get("text_config", config)):
        part["torch_dtype"] = dtype
    _write_json(directory / "config.json", config)
    _write_shards(directory, named, shards)
    _write_tokenizer(directory, config, described.tokens)
    for name, content in described.files(config).items():
        _write_json(directory / name, content)


def _build(kind: TinyKind, seed: int, text: Config, vision: Config) -> tuple[Config, Tensors]:
    config = kind.config(text, vision)
    named = draw(kind.tensors(config), seed)
    match kind.quantized:
        case None:
            return config, list(named)
        case Int4() as layout:
            return int4.int4_config(config, layout), list(int4.quantize(named, layout))
        case Float8() as layout:
            quantized = list(float8.quantize(named, layout))
            return float8.fp8_config(config, list(layout.ignore) or float8.unquantized_linears(quantized)), quantized


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


def _write_tokenizer(directory: Path, config: Config, special: SpecialTokens) -> None:
    text = config.get("text_config", config)
    template = (resources.files("remuda") / "assets" / special.template).read_text(encoding="utf-8").rstrip()
    content = tokenizer_json(special)
    _write_json(directory / "tokenizer.json", content)
    named = {"bos_token": special.bos, "eos_token": special.end_of_turn, "pad_token": special.pad}
    added = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in content["added_tokens"]}
    _write_json(
        directory / "tokenizer_config.json",
        {
            "added_tokens_decoder": added, **named, "chat_template": template, "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"], "model_max_length": text["max_position_embeddings"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )  # fmt: skip
    _write_json(directory / "special_tokens_map.json", {name: token for name, token in named.items() if token})
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    generation = {"bos_token_id": text["bos_token_id"], "eos_token_id": text["eos_token_id"], "do_sample": True}
    _write_json(directory / "generation_config.json", generation | {"temperature": 0.6, "top_p": 0.9})
