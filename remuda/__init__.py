"""Remuda: an inference and serving engine for language models that outgrow one GPU or one machine.

from remuda import LLM, SamplingParams
"""

from typing import TYPE_CHECKING, Any

from remuda.protocol.sampling import SamplingParams

if TYPE_CHECKING:
    from remuda.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "LLM":  # imports torch: only when asked for
        from remuda.llm import LLM

        return LLM
    raise AttributeError(f"module 'remuda' has no attribute {name!r}")
