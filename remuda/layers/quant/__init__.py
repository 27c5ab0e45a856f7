"""How checkpoints store weights: one scheme per format, found by the names of the modules.

A new format (block-scaled FP8, MXFP4) is a name in `config/model.py: WeightFormat`, a scheme in a file of
its own here, and what it packs with in the kernel table.
"""

from __future__ import annotations

from collections.abc import Callable

from remuda.config.model import WeightFormat
from remuda.config.quant import QuantRule
from remuda.layers.quant.compressed_tensors import ChannelFp8
from remuda.layers.quant.int4 import Int4
from remuda.layers.quant.online_fp8 import OnlineFp8
from remuda.layers.quant.scheme import Scheme
from remuda.layers.quant.unquantized import Unquantized

UNQUANTIZED = Unquantized()
_SCHEMES: dict[WeightFormat, Callable[[QuantRule], Scheme]] = {
    WeightFormat.PLAIN: lambda rule: UNQUANTIZED,
    WeightFormat.FP8_CHANNEL: lambda rule: ChannelFp8(),
    WeightFormat.FP8_ONLINE: lambda rule: OnlineFp8(),
    WeightFormat.INT4_GROUP: lambda rule: Int4(rule.group_size),
}


def scheme_of(rule: QuantRule, modules: list[str]) -> Scheme:
    """The scheme of modules that run as one. Raises ConfigError if the checkpoint stores them differently."""
    return _SCHEMES[rule.format_of_all(modules)](rule)
