from __future__ import annotations

import pytest

from remuda.config.model import QuantConfig, WeightFormat
from remuda.config.quant import QuantRule
from remuda.protocol.errors import ConfigError

PLAIN, FP8_CHANNEL = WeightFormat.PLAIN, WeightFormat.FP8_CHANNEL


def rule(*ignore: str) -> QuantRule:
    return QuantRule(QuantConfig(FP8_CHANNEL, ignore))


def test_names_must_match_exactly_and_patterns_from_the_start() -> None:
    assert rule("lm_head").format_of("lm_head") is PLAIN
    assert rule("lm_head").format_of("language_model.lm_head") is FP8_CHANNEL
    assert rule("re:.*lm_head").format_of("language_model.lm_head") is PLAIN
    assert rule("re:lm_head").format_of("language_model.lm_head") is FP8_CHANNEL


def test_without_a_quantization_everything_is_plain() -> None:
    assert QuantRule(None).format_of("anything") is PLAIN


def test_modules_that_run_as_one_layer_must_be_alike() -> None:
    assert rule("a").format_of_all(["b", "c"]) is FP8_CHANNEL and rule("a", "b").format_of_all(["a", "b"]) is PLAIN
    with pytest.raises(ConfigError, match="must treat a, b alike"):
        rule("a").format_of_all(["a", "b"])


def test_a_broken_pattern_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"quantization_config\.ignore has a bad pattern"):
        rule("re:(")
