"""config.json as published, as transformers rewrites it, and broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remuda.config.model import ImageTokens, ModelConfig, MoEConfig, QuantConfig, RopeScaling, WeightFormat
from remuda.kv.specs import ChunkedLocal, FullAttention
from remuda.models.llama.tiny import llama3_config
from remuda.models.llama4.tiny import maverick_config, maverick_text_config, scout_config
from remuda.models.registry import read_model_config
from remuda.models.tiny import Int4
from remuda.protocol.errors import ConfigError
from remuda.tiny.float8 import fp8_config
from remuda.tiny.int4 import int4_config

Edit = Callable[[dict[str, Any]], object]
MAVERICK = maverick_config({}, {}) | {"torch_dtype": "bfloat16"}
SCOUT = scout_config({}, {}) | {"torch_dtype": "bfloat16"}
LLAMA = llama3_config({}, {}) | {"torch_dtype": "float32"}


def read(path: Path, config: dict[str, Any], edit: Edit = lambda config: None, dtype: str = "auto") -> ModelConfig:
    config = json.loads(json.dumps(config))
    edit(config)
    (path / "config.json").write_text(json.dumps(config))
    return read_model_config(path, dtype)


def refusal(path: Path, config: dict[str, Any], edit: Edit, dtype: str = "auto") -> str:
    with pytest.raises(ConfigError) as caught:
        read(path, config, edit, dtype)
    return caught.value.message


def test_maverick_with_its_omissions(tmp_path: Path) -> None:
    model = read(tmp_path, MAVERICK)
    assert [layer.moe for layer in model.layers] == [False, True] * 4
    assert [layer.rope for layer in model.layers] == [True, True, True, False] * 2
    assert [layer.temperature_tuning for layer in model.layers] == [False, False, False, True] * 2
    assert {layer.attention for layer in model.layers if layer.rope} == {ChunkedLocal(64)}
    assert not any(layer.qk_norm for layer in model.layers)
    assert model.moe == MoEConfig(8, 1, 128, 128) and model.rope_scaling is None and model.dtype == "bfloat16"
    assert model.image_tokens == ImageTokens(1080, 1081, 1090, 1092, 1084, 1085)
    assert model.eos_token_ids == (1001, 1007, 1008) and model.bos_token_id == 1000


def test_scout_with_explicit_lists(tmp_path: Path) -> None:
    model = read(tmp_path, SCOUT)
    assert all(layer.moe for layer in model.layers)
    assert [layer.qk_norm for layer in model.layers] == [True, True, True, False] * 2
    assert model.rope_scaling == RopeScaling(16.0, 1.0, 1.0, 64)


def text(**changes: Any) -> Edit:
    return lambda config: config["text_config"].update(changes)


@pytest.mark.parametrize(("value", "tuned"), [(4, True), (True, True), (0, False), (False, False)])
def test_temperature_tuning_may_be_an_integer(tmp_path: Path, value: object, tuned: bool) -> None:
    model = read(tmp_path, MAVERICK, text(attn_temperature_tuning=value))
    assert any(layer.temperature_tuning for layer in model.layers) is tuned


def test_an_empty_list_means_the_default(tmp_path: Path) -> None:
    assert read(tmp_path, MAVERICK, text(no_rope_layers=[])).layers == read(tmp_path, MAVERICK).layers


def test_without_chunks_every_layer_is_full(tmp_path: Path) -> None:
    model = read(tmp_path, MAVERICK, text(attention_chunk_size=None))
    assert {layer.attention for layer in model.layers} == {FullAttention()}


def test_what_transformers_5_writes_reads_the_same(tmp_path: Path) -> None:
    def modern(config: dict[str, Any]) -> None:
        part = config["text_config"]
        part["rope_parameters"] = (part.pop("rope_scaling") or {"rope_type": "default"}) | {
            "rope_theta": part.pop("rope_theta")
        }
        config["dtype"] = part["dtype"] = config.pop("torch_dtype")
        config["image_token_id"] = config.pop("image_token_index")

    for config in (MAVERICK, SCOUT):
        assert read(tmp_path, config, modern) == read(tmp_path, config)


def test_a_flat_text_config(tmp_path: Path) -> None:
    model = read(tmp_path, maverick_text_config({}, {}))
    assert model.architecture == "Llama4ForCausalLM" and model.vision is None and model.image_tokens is None
    assert model.layers == read(tmp_path, MAVERICK).layers


def test_llama3(tmp_path: Path) -> None:
    model = read(tmp_path, LLAMA)
    assert model.head_dim == 32 and model.moe is None and not model.rope_interleaved
    assert model.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 64)
    assert read(tmp_path, LLAMA, lambda config: config.update(eos_token_id=5)).eos_token_ids == (5,)


def test_generation_config_overrides_end_of_sequence_and_sets_sampling(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8], "temperature": 0.6, "top_k": 50}')
    model = read(tmp_path, LLAMA)
    assert model.eos_token_ids == (7, 8) and model.generation_defaults == {"temperature": 0.6, "top_k": 50.0}


def test_a_checkpoint_that_does_not_sample_is_greedy_by_default(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6}')
    assert read(tmp_path, LLAMA).generation_defaults == {"temperature": 0.0}
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6}')
    assert read(tmp_path, LLAMA).generation_defaults == {"temperature": 0.6}


def test_max_tiles_come_from_the_preprocessor(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"max_patches": 4}')
    vision = read(tmp_path, MAVERICK).vision
    assert vision is not None and vision.max_tiles == 4 and vision.tokens_per_tile == 9


def test_dtypes(tmp_path: Path) -> None:
    assert read(tmp_path, MAVERICK, dtype="float32").dtype == "float32"
    assert read(tmp_path, LLAMA).dtype == "float32"
    double = lambda config: config.update(torch_dtype="float64")  # noqa: E731
    assert "choose --dtype bfloat16, float16 or float32" in refusal(tmp_path, LLAMA, double)
    assert read(tmp_path, LLAMA, double, dtype="bfloat16").checkpoint_dtype == "float64"


def test_fp8_with_both_styles_of_ignore(tmp_path: Path) -> None:
    for ignore in (["lm_head", "a.b"], ["re:.*lm_head"]):
        quant = read(tmp_path, fp8_config(MAVERICK, ignore)).quant
        assert quant is not None and quant.ignore == tuple(ignore)


def test_packed_integers_with_groups_or_a_scale_per_output(tmp_path: Path) -> None:
    config = int4_config(MAVERICK, Int4("", ("lm_head",), 128))
    assert read(tmp_path, config).quant == QuantConfig(WeightFormat.INT4_GROUP, ("lm_head",), 128)
    config["quantization_config"]["config_groups"]["group_0"]["weights"] |= {"strategy": "channel", "group_size": None}
    assert read(tmp_path, config).quant == QuantConfig(WeightFormat.INT4_GROUP, ("lm_head",), 0)


@pytest.mark.parametrize(
    "field",
    ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "rms_norm_eps", "intermediate_size",
     "intermediate_size_mlp", "num_local_experts", "interleave_moe_layer_step", "max_position_embeddings"],
)  # fmt: skip
def test_a_missing_field_is_named_with_its_file(tmp_path: Path, field: str) -> None:
    message = refusal(tmp_path, MAVERICK, lambda config: config["text_config"].pop(field))
    assert f"{tmp_path / 'config.json'}: text_config.{field} is missing" in message


def fp8(change: Edit) -> Edit:
    def edit(config: dict[str, Any]) -> None:
        config.update(fp8_config(config, []))
        change(config["quantization_config"])

    return edit


def int4(**changes: object) -> Edit:
    def edit(config: dict[str, Any]) -> None:
        config.update(int4_config(config, Int4("", (), 128)))
        config["quantization_config"]["config_groups"]["group_0"]["weights"].update(changes)

    return edit


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (text(hidden_size="512"), "text_config.hidden_size must be an integer"),
        (text(hidden_size=-1), "must be an integer from 1 to"),
        (text(num_hidden_layers=10**9), "must be an integer from 1 to 4096"),
        (text(head_dim=33), "head_dim must be even"),
        (text(rms_norm_eps=float("nan")), "rms_norm_eps must be a number"),
        (text(rope_theta=10**400), "rope_theta must be a number"),
        (text(rms_norm_eps=True), "rms_norm_eps must be a number"),
        (text(num_key_value_heads=3), "must divide num_attention_heads"),
        (text(hidden_act="gelu"), "hidden_act must be 'silu'"),
        (text(attention_bias=True), "attention_bias must be false"),
        (text(no_rope_layers=[1, 0]), "no_rope_layers has 2 entries for 8 layers"),
        (text(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "rope_type 'yarn' is not supported"),
        (text(rope_scaling={"rope_type": "llama3", "factor": 2.0}), "rope_scaling.low_freq_factor is missing"),
        (text(num_experts_per_tok=9), "exceeds num_local_experts"),
        (lambda c: c.update(architectures=["GPT2LMHeadModel"]), "'GPT2LMHeadModel' is not supported; supported:"),
        (lambda c: c.pop("architectures"), "architectures is missing"),
        (lambda c: c.pop("vision_config"), "vision_config is missing"),
        (lambda c: c["vision_config"].update(image_size=85), "must be a multiple of patch_size"),
        (lambda c: c["vision_config"].update(intermediate_size=100), "the pixel-shuffled width"),
        (fp8(lambda q: q.update(quant_method="awq")), "'awq' (format 'float-quantized') is not supported"),
        (fp8(lambda q: q.update(format="pack-quantized")), "supported: 4-bit int, per group or channel, symmetric"),
        (fp8(lambda q: q.update(format="mixed-precision")), "float-quantized or pack-quantized"),
        (int4(symmetric=False), "symmetric"),
        (int4(num_bits=8), "4-bit int"),
        (int4(actorder="group"), "reordered inputs"),
        (int4(group_size=12), "multiple of 8"),
        (fp8(lambda q: q.update(kv_cache_scheme={"num_bits": 8})), "quantized KV caches are not supported"),
        (fp8(lambda q: q["config_groups"]["group_0"]["weights"].update(strategy="tensor")), "per channel"),
        (fp8(lambda q: q["config_groups"]["group_0"].update(targets=["re:.*"])), 'must be ["Linear"]'),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path: Path, edit: Edit, expected: str) -> None:
    message = refusal(tmp_path, MAVERICK, edit)
    assert expected in message and str(tmp_path / "config.json") in message


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_files_that_are_no_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_model_config(tmp_path)


def test_directories_that_are_none_or_empty(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a directory"):
        read_model_config(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"config\.json does not exist"):
        read_model_config(tmp_path)
