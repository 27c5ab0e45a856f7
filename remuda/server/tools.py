"""The functions that a chat request offers, checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from remuda.protocol.errors import InvalidRequest

_NAME = re.compile(r"[\w.:/-]{1,128}")  # OpenAI's and what MCP servers add


def check_tools(tools: Sequence[dict[str, Any]] | None) -> None:
    """Raises InvalidRequest naming the tool that is no function with a name and, at most, an object of parameters."""
    for i, tool in enumerate(tools or ()):
        where = f"tools[{i}]"
        if tool.get("type", "function") != "function":
            raise _refusal(f"{where}.type must be 'function', not {tool.get('type')!r}")
        function = tool.get("function")
        if not isinstance(function, dict):
            raise _refusal(f"{where}.function must be an object with a name")
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _refusal(f"{where}.function.name must be 1 to 128 letters, digits or _ - . : / characters")
        if not isinstance(function.get("parameters"), dict | None):
            raise _refusal(f"{where}.function.parameters must be an object, a JSON schema")
        if not isinstance(function.get("description"), str | None):
            raise _refusal(f"{where}.function.description must be a string")
        if not isinstance(function.get("strict"), bool | None):
            raise _refusal(f"{where}.function.strict must be true or false")


def function_names(tools: Sequence[dict[str, Any]]) -> frozenset[str]:
    return frozenset(tool["function"]["name"] for tool in tools)


def _refusal(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="tools")
