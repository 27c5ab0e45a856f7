"""The parsers by vLLM's names, and which one a model's template asks for."""

from __future__ import annotations

from remuda.text.parsers.calls import ToolCallParser
from remuda.text.parsers.hermes import HermesToolCalls
from remuda.text.parsers.llama import LlamaToolCalls
from remuda.text.parsers.mistral import MistralToolCalls
from remuda.text.parsers.reasoning import DeepSeekR1Reasoning, Qwen3Reasoning, ReasoningParser

TOOL_CALL_PARSERS: dict[str, type[ToolCallParser]] = {
    "llama4_pythonic": LlamaToolCalls,
    "llama4_json": LlamaToolCalls,
    "llama3_json": LlamaToolCalls,
    "pythonic": LlamaToolCalls,
    "hermes": HermesToolCalls,
    "mistral": MistralToolCalls,
}
REASONING_PARSERS: dict[str, type[ReasoningParser]] = {
    "qwen3": Qwen3Reasoning,
    "deepseek_r1": DeepSeekR1Reasoning,
}


def tool_call_parser_of(template: str, architecture_default: str) -> type[ToolCallParser]:
    """A template shows the form that a model was trained on, whoever trained it; else its architecture decides."""
    for name in ("hermes", "mistral"):
        if TOOL_CALL_PARSERS[name].marks[0] in template:
            return TOOL_CALL_PARSERS[name]
    return TOOL_CALL_PARSERS[architecture_default]
