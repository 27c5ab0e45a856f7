"""Remuda: an inference and serving engine for language models that outgrow one GPU or one machine.

from remuda import LLM, SamplingParams
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remuda.llm import LLM
    from remuda.protocol.sampling import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: LLM needs torch, and kernels alone need neither."""
    if name == "LLM":
        from remuda.llm import LLM

        return LLM
    if name == "SamplingParams":
        from remuda.protocol.sampling import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'remuda' has no attribute {name!r}")
