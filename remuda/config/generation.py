"""generation_config.json: end-of-sequence ids and sampling defaults that a checkpoint's makers chose."""

from __future__ import annotations

from pathlib import Path

import msgspec

from remuda.config.fields import Fields, read_json
from remuda.config.model import ModelConfig

_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def with_generation_config(config: ModelConfig, directory: Path) -> ModelConfig:
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
