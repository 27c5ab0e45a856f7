"""Trained weights as a published-layout checkpoint: bf16 safetensors shards, index, configs, tokenizer, chat
template.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from training.architecture import PAD, STOPS, TEXT, VISION, config
from training.dialogues import dialogue, mix_at
from training.vocabulary import write_tokenizer

SHARDS = 3
CORPUS_DIALOGUES = 12_000  # that the vocabulary is counted in


def write_weights(model: nn.Module, directory: Path) -> None:
    state = {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    total = sum(value.nbytes for value in state.values())
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, value in sorted(state.items()):
        if sum(v.nbytes for shard in shards for v in shard.values()) >= total * len(shards) / SHARDS:
            shards.append({})
        shards[-1][name] = value
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, directory / file, metadata={"format": "pt"})
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    write_json(directory, "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def read_weights(model: nn.Module, directory: Path) -> None:
    state: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        state |= load_file(file)
    model.load_state_dict(state)


def write_json(directory: Path, name: str, content: dict[str, Any]) -> None:
    (directory / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_fixed_files(directory: Path, texts: Iterable[str]) -> None:
    """Everything but weights and the chat template; the vocabulary is counted in `texts`."""
    write_json(directory, "config.json", config())
    write_json(directory, "generation_config.json", {
        "bos_token_id": TEXT["bos_token_id"], "eos_token_id": STOPS, "pad_token_id": PAD, "do_sample": False,
    })  # fmt: skip
    size = {"height": VISION["image_size"], "width": VISION["image_size"]}
    write_json(
        directory,
        "preprocessor_config.json",
        {
            "data_format": "channels_first",
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "Llama4ImageProcessorFast",
            "image_std": [0.5, 0.5, 0.5],
            "max_patches": 16,
            "processor_class": "Llama4Processor",
            "resample": 2,
            "rescale_factor": 1 / 255,
            "resize_to_max_canvas": False,
            "size": size,
        },
    )
    write_json(directory, "processor_config.json", {
        "image_token": "<|image|>", "fake_image_token": "<|image|>", "patch_size": VISION["patch_size"],
        "pixel_shuffle_ratio": VISION["pixel_shuffle_ratio"], "processor_class": "Llama4Processor",
    })  # fmt: skip
    write_tokenizer(directory, texts)


def corpus() -> list[str]:
    """Every text of many training chats, tool definitions included."""
    rng = Random("vocabulary")
    texts: list[str] = []
    for _ in range(CORPUS_DIALOGUES):
        chat = dialogue(rng, mix_at(0.0))
        texts += [json.dumps(tool) for tool in chat.tools]
        for message in chat.messages:
            content = message["content"]
            texts += [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]
    return texts


if __name__ == "__main__":
    write_fixed_files(Path(__file__).parent.parent / "remuda" / "assets" / "demo", corpus())
