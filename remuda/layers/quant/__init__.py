"""How checkpoints store weights: one scheme per format, found by the names of the modules.

A new format (block-scaled FP8, packed int4, MXFP4) is a name in `config/model.py: WeightFormat`, a scheme in a file of
its own here, and what it packs with in the kernel table.
"""

from __future__ import annotations

from remuda.config.model import WeightFormat
from remuda.config.quant import QuantRule
from remuda.layers.quant.compressed_tensors import ChannelFp8
from remuda.layers.quant.online_fp8 import OnlineFp8
from remuda.layers.quant.scheme import Scheme
from remuda.layers.quant.unquantized import Unquantized

UNQUANTIZED = Unquantized()
SCHEMES: dict[WeightFormat, Scheme] = {
    WeightFormat.PLAIN: UNQUANTIZED,
    WeightFormat.FP8_CHANNEL: ChannelFp8(),
    WeightFormat.FP8_ONLINE: OnlineFp8(),
}


def scheme_of(rule: QuantRule, modules: list[str]) -> Scheme:
    """The scheme of modules that run as one. Raises ConfigError if the checkpoint stores them differently."""
    return SCHEMES[rule.format_of_all(modules)]
