from __future__ import annotations

import pytest

from remuda.config.model import QuantConfig
from remuda.config.quant import QuantRule
from remuda.protocol.errors import ConfigError


def rule(*ignore: str) -> QuantRule:
    return QuantRule(QuantConfig("compressed-tensors", ignore))


def test_names_must_match_exactly_and_patterns_from_the_start() -> None:
    assert not rule("lm_head").covers("lm_head") and rule("lm_head").covers("language_model.lm_head")
    assert not rule("re:.*lm_head").covers("language_model.lm_head")
    assert rule("re:lm_head").covers("language_model.lm_head")


def test_without_a_quantization_nothing_is_covered() -> None:
    assert not QuantRule(None).covers("anything")


def test_modules_that_run_as_one_layer_must_be_alike() -> None:
    assert rule("a").covers_all(["b", "c"]) and not rule("a", "b").covers_all(["a", "b"])
    with pytest.raises(ConfigError, match="must treat a, b alike"):
        rule("a").covers_all(["a", "b"])


def test_a_broken_pattern_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"quantization_config\.ignore has a bad pattern"):
        rule("re:(")
