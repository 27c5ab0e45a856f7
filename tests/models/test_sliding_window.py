"""Layers with a sliding window, served by the engine on a CPU, against transformers' model with such layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers
from safetensors.torch import load_file

from remuda.config.engine import CacheConfig, EngineConfig, ParallelConfig, SchedulerConfig
from remuda.config.model import ModelConfig
from remuda.executor.inproc import InprocExecutor
from remuda.kv.specs import FullAttention, SlidingWindow
from remuda.models.registry import read_model_config
from tests.engine.fakes import core_over, request, run_to_end
from tests.models.conftest import PROMPT
from tests.models.reference import reference_logits

WINDOW, OUTPUTS, BLOCK = 10, 24, 4
PAGES = 61
KINDS = "WWFWWF"


def windowed(path: Path) -> ModelConfig:
    """The Llama 3 at `path`, most of its layers with a window: no published architecture that is read has one yet."""
    model = read_model_config(path, "float32")
    kinds = {"W": SlidingWindow(WINDOW), "F": FullAttention()}
    layers = zip(model.layers, KINDS, strict=True)
    return msgspec.structs.replace(
        model, layers=tuple(msgspec.structs.replace(layer, attention=kinds[kind]) for layer, kind in layers)
    )


def windowed_reference(path: Path) -> Any:
    """Ministral is a Llama with such layers; the weights have the same names."""
    config = json.loads((path / "config.json").read_text())
    config["layer_types"] = ["sliding_attention" if kind == "W" else "full_attention" for kind in KINDS]
    config |= {"model_type": "ministral", "sliding_window": WINDOW}
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    model = transformers.MinistralForCausalLM._from_config(
        transformers.MinistralConfig.from_dict(config), dtype=torch.float32, attn_implementation="eager"
    )
    state = {name: x.float() for file in path.glob("*.safetensors") for name, x in load_file(file).items()}
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.parametrize("batched_tokens", [7, 200])
def test_tokens_and_logprobs_are_those_of_transformers(tiny: Callable[[str], Path], batched_tokens: int) -> None:
    """Chunked and whole prompts, shared prefixes, and fewer pages than four groups would fill without a window."""
    path = tiny("llama3")
    model = windowed(path)
    config = EngineConfig(
        model,
        ParallelConfig(layer_partition=(model.num_layers,)),
        CacheConfig(block_size=BLOCK, num_pages_override=PAGES),
        SchedulerConfig(max_num_seqs=3, max_num_batched_tokens=batched_tokens, max_model_len=80),
        threads_per_rank=1,
    )
    core = core_over(config, InprocExecutor(config))
    prompts = [PROMPT[:50], PROMPT[:3], PROMPT[:42] + PROMPT[90:95], PROMPT[60:89]]
    requests = [
        request(f"r{i}", prompt, max_tokens=OUTPUTS, ignore_eos=True, temperature=0.0, logprobs=1)
        for i, prompt in enumerate(prompts)
    ]
    outcomes = run_to_end(core, requests)
    assert core.stats().prefix_hits_tokens > 0
    core.executor.shutdown()
    reference = windowed_reference(path)
    for req in requests:
        outcome, ids = outcomes[req.request_id], req.prompt_token_ids
        want_TV = reference_logits(reference, ids + outcome.token_ids[:-1])[len(ids) - 1 :].log_softmax(-1)
        assert outcome.token_ids == want_TV.argmax(-1).tolist()
        got_T = torch.tensor([entry.logprobs[0] for entry in outcome.logprobs])
        assert (got_T - want_TV.max(-1).values).abs().max() < 1e-4
