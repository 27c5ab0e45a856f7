"""Qwen3 and Qwen3-MoE: config.json as published, logits under every layout, and greedy texts against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from remuda import LLM, SamplingParams
from remuda.config.model import ModelConfig, MoEConfig
from remuda.models.qwen3.tiny import qwen3_config
from remuda.models.qwen3_moe.tiny import qwen3_moe_config
from remuda.models.registry import read_model_config
from remuda.protocol.errors import ConfigError
from remuda.tiny import make_tiny
from tests.models.conftest import PROMPT
from tests.models.reference import load_reference, reference_logits
from tests.models.replica import Replica
from tests.models.test_text import TOLERANCE, in_pieces


def read(path: Path, config: dict[str, Any]) -> ModelConfig:
    (path / "config.json").write_text(json.dumps(config))
    return read_model_config(path)


def test_a_dense_config(tmp_path: Path) -> None:
    model = read(tmp_path, qwen3_config({}, {}))
    assert (model.head_dim, model.num_heads, model.num_kv_heads, model.rope_interleaved) == (64, 8, 4, False)
    assert model.tie_word_embeddings and model.moe is None and not any(layer.moe for layer in model.layers)
    without = {key: value for key, value in qwen3_config({}, {}).items() if key != "head_dim"}
    assert read(tmp_path, without).head_dim == 128  # whatever hidden_size / num_attention_heads is


def test_sliding_windows(tmp_path: Path) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 4}
    model = read(tmp_path, qwen3_config(windows, {}))
    assert [layer.attention.window for layer in model.layers] == [None] * 4 + [64] * 2
    explicit = ["sliding_attention", "full_attention"] * 3  # as transformers 5 writes it
    model = read(tmp_path, qwen3_config(windows | {"layer_types": explicit}, {}))
    assert [layer.attention.window for layer in model.layers] == [64, None] * 3


def test_a_mixture_of_experts(tmp_path: Path) -> None:
    model = read(tmp_path, qwen3_moe_config({}, {}))
    assert all(layer.moe for layer in model.layers) and not model.tie_word_embeddings
    assert model.moe == MoEConfig(8, 2, intermediate_size=128, shared_intermediate_size=0, renormalize=True)
    raw = read(tmp_path, qwen3_moe_config({"norm_topk_prob": False}, {})).moe
    assert raw is not None and not raw.renormalize


def test_which_layers_have_experts(tmp_path: Path) -> None:
    def moe(**changes: Any) -> list[bool]:
        return [layer.moe for layer in read(tmp_path, qwen3_moe_config(changes, {})).layers]

    assert moe(decoder_sparse_step=2) == [False, True] * 3
    assert moe(mlp_only_layers=[0, 5]) == [False, True, True, True, True, False]
    assert moe(decoder_sparse_step=3, mlp_only_layers=[2]) == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window must be false"),
        ({"attention_bias": True}, "attention_bias must be false"),
        ({"num_experts_per_tok": 9}, r"num_experts_per_tok \(9\) exceeds num_experts \(8\)"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn' is not supported"),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        read(tmp_path, qwen3_moe_config(changes, {}))


LAYOUTS = [{"tp": 2}, {"tp": 4, "partition": (2, 3, 1)}, {"tp": 8}, {"tp": 1, "partition": (1, 4, 1)}]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", ["qwen3", "qwen3-moe"])
def test_layouts(
    tiny: Callable[[str], Path], expected: Callable[[str], torch.Tensor], kind: str, layout: dict[str, Any]
) -> None:
    replica = Replica(tiny(kind), **layout)
    assert (in_pieces(replica, "a", [50, 60, 29, 1]) - expected(kind)).abs().max() < TOLERANCE


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("qwen3", {"tie_word_embeddings": False}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 37, "max_window_layers": 1}),
    ("qwen3-moe", {"norm_topk_prob": False}),
    ("qwen3-moe", {"decoder_sparse_step": 2, "num_experts_per_tok": 3}),
    ("qwen3-moe", {"mlp_only_layers": [0, 2], "num_experts": 6}),
]


@pytest.mark.parametrize("layout", [{"tp": 4, "partition": (1, 5)}, {"tp": 2, "ep": True}], ids=str)
def test_packed_integers_over_ranks(
    tiny: Callable[[str], Path], expected: Callable[[str], torch.Tensor], layout: dict[str, Any]
) -> None:
    kind = "qwen3-moe-int4"
    assert (in_pieces(Replica(tiny(kind), **layout), "a", [50, 89, 1]) - expected(kind)).abs().max() < TOLERANCE


@pytest.mark.parametrize(("kind", "changes"), CHANGES, ids=str)
def test_variants(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    make_tiny(kind, tmp_path, text={"num_hidden_layers": 4} | changes)
    want = reference_logits(load_reference(tmp_path), PROMPT).log_softmax(-1)
    layouts: list[dict[str, Any]] = [{"partition": (1, 3)}, {"tp": 4, "ep": kind == "qwen3-moe"}]
    for layout in layouts:
        got = in_pieces(Replica(tmp_path, **layout), "a", [100, 40])
        assert (got - want).abs().max() < TOLERANCE


@pytest.mark.parametrize("kind", ["qwen3", "qwen3-moe"])
def test_a_checkpoint_that_transformers_has_saved_again(tiny: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    """Same tensors under transformers 5's config keys, in float32 and one file."""
    reference = load_reference(tiny(kind))
    reference.save_pretrained(tmp_path)
    want = reference_logits(reference, PROMPT).log_softmax(-1)
    assert (in_pieces(Replica(tmp_path, tp=2), "a", [1000]) - want).abs().max() < TOLERANCE


SHARED = PROMPT[:40]
PROMPTS = [SHARED + PROMPT[40:50], SHARED + PROMPT[60:67], PROMPT[100:120]]
WINDOW = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2}
SERVED: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    ("qwen3", {}, [{"pipeline_parallel_size": 3, "max_num_batched_tokens": 7, "max_num_seqs": 4}]),
    ("qwen3", WINDOW, [{"max_num_batched_tokens": 16, "max_num_seqs": 4}]),
    (
        "qwen3-moe",
        {},
        [{}, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "enable_expert_parallel": True}],
    ),
]


def greedy(path: Path) -> list[tuple[list[int], list[float]]]:
    """transformers' twelve tokens after each of PROMPTS, with their log-probabilities."""
    model, answers = load_reference(path), []
    for prompt in PROMPTS:
        ids, scores = list(prompt), []
        for _ in range(12):
            best = reference_logits(model, ids)[-1].log_softmax(-1).max(-1)
            ids.append(int(best.indices))
            scores.append(float(best.values))
        answers.append((ids[len(prompt) :], scores))
    return answers


def check_answers(llm: LLM, expected: list[tuple[list[int], list[float]]]) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=12, logprobs=1, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], params, use_tqdm=False)
    for output, (tokens, scores) in zip(outputs, expected, strict=True):
        answer = output.outputs[0]
        assert list(answer.token_ids) == tokens
        got = [step[token].logprob for step, token in zip(answer.logprobs, tokens, strict=True)]
        assert got == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize(("kind", "changes", "layouts"), SERVED, ids=str)
def test_greedy_texts_twice_the_second_time_from_the_prefix_cache(
    tmp_path: Path, kind: str, changes: dict[str, Any], layouts: list[dict[str, Any]]
) -> None:
    make_tiny(kind, tmp_path, text={"num_hidden_layers": 4} | changes)
    expected = greedy(tmp_path)
    for layout in layouts:
        with LLM(str(tmp_path), dtype="float32", max_model_len=256, kv_cache_memory_bytes=16 << 20, **layout) as llm:
            check_answers(llm, expected)
            check_answers(llm, expected)
            assert llm.stats().prefix_hits_tokens > 0
