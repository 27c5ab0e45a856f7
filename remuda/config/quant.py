"""Which modules of a quantized checkpoint are stored in which format, by their names."""

from __future__ import annotations

import re

from remuda.config.fields import Fields
from remuda.config.model import QuantConfig, WeightFormat
from remuda.protocol.errors import ConfigError

# What stays as it is when the weights are quantized here; published FP8 checkpoints leave these out too.
_PRECISE = (r"re:vision_model\.", r"re:multi_modal_projector\.")
FP8_ONLINE = QuantConfig(WeightFormat.FP8_ONLINE, _PRECISE)


class QuantRule:
    """compressed-tensors' rule: every Linear has the format but for those that `ignore` names or matches (re:...)."""

    def __init__(self, config: QuantConfig | None) -> None:
        self.format = WeightFormat.PLAIN if config is None else config.format
        self.group_size = config.group_size if config else 0
        entries = config.ignore if config else ()
        self.names = frozenset(entry for entry in entries if not entry.startswith("re:"))
        try:
            self.patterns = [re.compile(entry[3:]) for entry in entries if entry.startswith("re:")]
        except re.error as error:
            raise ConfigError(f"config.json: quantization_config.ignore has a bad pattern: {error}") from None

    def format_of(self, module: str) -> WeightFormat:
        """How the checkpoint stores `module`.weight."""
        if module in self.names or any(pattern.match(module) for pattern in self.patterns):
            return WeightFormat.PLAIN
        return self.format

    def format_of_all(self, modules: list[str]) -> WeightFormat:
        """The format of modules that run as one; refuses a mixture."""
        formats = {self.format_of(module) for module in modules}
        if len(formats) > 1:
            raise ConfigError(
                f"quantization_config.ignore must treat {', '.join(modules)} alike: they run as one layer"
            )
        return formats.pop()


def read_quantization(root: Fields) -> QuantConfig | None:
    """compressed-tensors with FP8 weights per output channel, or 4-bit ones per group; anything else is refused."""
    if "quantization_config" not in root:
        return None
    quant = root.child("quantization_config")
    method, form = quant.get("quant_method", str), quant.get("format", str, "float-quantized")
    if method != "compressed-tensors" or form not in _FORMS:
        raise quant.refuse(
            "quant_method",
            f"{method!r} (format {form!r}) is not supported; supported: compressed-tensors, {' or '.join(_FORMS)}",
        )
    if "kv_cache_scheme" in quant:
        raise quant.refuse("kv_cache_scheme", "must be null: quantized KV caches are not supported")
    groups = quant.child("config_groups")
    sizes = set()
    for name in groups.values:
        group = groups.child(name)
        sizes.add(_FORMS[form](group.child("weights")))
        if group.values.get("targets") != ["Linear"]:
            raise group.refuse("targets", 'must be ["Linear"]; use "ignore" for what stays unquantized')
    if len(sizes) != 1:
        raise quant.refuse("config_groups", "must all quantize alike")
    ignore = quant.values.get("ignore") or []
    if not isinstance(ignore, list) or not all(isinstance(entry, str) for entry in ignore):
        raise quant.refuse("ignore", "must be a list of module names or re: patterns")
    stored, group_size = sizes.pop()
    return QuantConfig(stored, tuple(ignore), group_size)


def _float_quantized(weights: Fields) -> tuple[WeightFormat, int]:
    scheme = tuple(weights.values.get(key) for key in ("num_bits", "type", "strategy", "symmetric"))
    if scheme != (8, "float", "channel", True):
        raise weights.refuse("strategy", f"{scheme} is not supported; supported: 8-bit float, per channel, symmetric")
    return WeightFormat.FP8_CHANNEL, 0


def _pack_quantized(weights: Fields) -> tuple[WeightFormat, int]:
    scheme = tuple(weights.values.get(key) for key in ("num_bits", "type", "symmetric"))
    strategy, size = weights.get("strategy", str), weights.values.get("group_size")
    if scheme != (4, "int", True) or strategy not in ("group", "channel"):
        raise weights.refuse(
            "strategy", f"{(*scheme, strategy)} is not supported; supported: 4-bit int, per group or channel, symmetric"
        )
    if weights.values.get("actorder") in ("group", "dynamic", True):
        raise weights.refuse("actorder", "must be null or weight: groups of reordered inputs are not supported")
    if strategy == "channel":
        return WeightFormat.INT4_GROUP, 0
    if not isinstance(size, int) or size <= 0 or size % 8:
        raise weights.refuse("group_size", f"must be a multiple of 8, not {size}")
    return WeightFormat.INT4_GROUP, size


_FORMS = {"float-quantized": _float_quantized, "pack-quantized": _pack_quantized}
