"""Which modules of a quantized checkpoint carry FP8 weights with per-output-channel scales.

On CPU they are computed exactly as weight * scale: the kernel casts the float8 weight to the compute dtype, which is
exact, and the scale multiplies the output channel. In memory the weight stays float8.
"""

from __future__ import annotations

import re

from remuda.config.model import QuantConfig
from remuda.protocol.errors import ConfigError


class QuantRule:
    """compressed-tensors' rule: every Linear is quantized but for those that `ignore` names or matches (re:...)."""

    def __init__(self, config: QuantConfig | None) -> None:
        self.quantized = config is not None
        entries = config.ignore if config else ()
        self.names = frozenset(entry for entry in entries if not entry.startswith("re:"))
        try:
            self.patterns = [re.compile(entry[3:]) for entry in entries if entry.startswith("re:")]
        except re.error as error:
            raise ConfigError(f"config.json: quantization_config.ignore has a bad pattern: {error}") from None

    def covers(self, module: str) -> bool:
        """True if the checkpoint stores `module`.weight in float8 beside `module`.weight_scale."""
        if not self.quantized or module in self.names:
            return False
        return not any(pattern.match(module) for pattern in self.patterns)

    def covers_all(self, modules: list[str]) -> bool:
        """covers() of modules that run as one; refuses a mixture."""
        covered = {self.covers(module) for module in modules}
        if len(covered) > 1:
            raise ConfigError(
                f"quantization_config.ignore must treat {', '.join(modules)} alike: they run as one layer"
            )
        return covered.pop()
