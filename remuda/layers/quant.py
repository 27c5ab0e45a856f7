"""Which modules of a quantized checkpoint carry FP8 weights with per-output-channel scales.

On CPU they are computed exactly as weight * scale: the loader casts the float8 weight to the compute dtype, which is
exact, and the scale multiplies the output channel.
"""

from __future__ import annotations

import re
from functools import cached_property

from remuda.config.model import QuantConfig
from remuda.protocol.errors import ConfigError


class QuantRule:
    """compressed-tensors' rule: every Linear is quantized but for those that `ignore` names or matches (re:...)."""

    def __init__(self, config: QuantConfig | None) -> None:
        self.config = config

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        entries = self.config.ignore if self.config else ()
        try:
            return [re.compile(entry[3:]) for entry in entries if entry.startswith("re:")]
        except re.error as error:
            raise ConfigError(f"config.json: quantization_config.ignore has a bad pattern: {error}") from None

    def covers(self, module: str) -> bool:
        """True if the checkpoint stores `module`.weight in float8 beside `module`.weight_scale."""
        if self.config is None or module in self.config.ignore:
            return False
        return not any(pattern.match(module) for pattern in self._patterns)

    def covers_all(self, modules: list[str]) -> bool:
        """covers() of modules that run as one; refuses a mixture."""
        covered = {self.covers(module) for module in modules}
        if len(covered) > 1:
            raise ConfigError(
                f"quantization_config.ignore must treat {', '.join(modules)} alike: they run as one layer"
            )
        return covered.pop()
