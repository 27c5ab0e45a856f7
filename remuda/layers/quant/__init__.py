"""How checkpoints store weights: one scheme per format, found by the names of the modules.

A new format (block-scaled FP8, packed int4, MXFP4, FP8 made of bfloat16 while loading) is a name in
`config/quant.py: WeightFormat`, a scheme in a file of its own here, and what it packs with in the kernel table.
"""

from __future__ import annotations

from remuda.config.quant import QuantRule, WeightFormat
from remuda.layers.quant.compressed_tensors import ChannelFp8
from remuda.layers.quant.scheme import Scheme
from remuda.layers.quant.unquantized import Unquantized

UNQUANTIZED = Unquantized()
SCHEMES: dict[WeightFormat, Scheme] = {WeightFormat.PLAIN: UNQUANTIZED, WeightFormat.FP8_CHANNEL: ChannelFp8()}


def scheme_of(rule: QuantRule, modules: list[str]) -> Scheme:
    """The scheme of modules that run as one. Raises ConfigError if the checkpoint stores them differently."""
    return SCHEMES[rule.format_of_all(modules)]
