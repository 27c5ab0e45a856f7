"""Rope's base and scaling as config.json gives them, in the spelling of today's transformers and of earlier ones."""

from __future__ import annotations

from remuda.config.fields import Fields
from remuda.config.model import RopeScaling


def read_rope(text: Fields) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling` (before)."""
    key = "rope_parameters" if "rope_parameters" in text else "rope_scaling"
    theta = text.get("rope_theta", float, 10000.0)
    if key not in text:
        return theta, None
    rope = text.child(key)
    theta = rope.get("rope_theta", float, theta)
    kind = rope.get("rope_type", str, rope.get("type", str, "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise rope.refuse("rope_type", f"{kind!r} is not supported; supported: default, llama3")
    return theta, RopeScaling(
        factor=rope.get("factor", float),
        low_freq_factor=rope.get("low_freq_factor", float),
        high_freq_factor=rope.get("high_freq_factor", float),
        original_max_position_embeddings=rope.size("original_max_position_embeddings"),
    )
