"""Chat messages as clients send them, checked and brought into the form that chat templates know."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from remuda.protocol.errors import InvalidRequest

_ROLES_WITHOUT_IMAGES = ("system", "developer", "assistant", "tool")
_ROLES = ("user", *_ROLES_WITHOUT_IMAGES)


class Conversation(NamedTuple):
    messages: list[dict[str, Any]]  # in transformers' form
    image_urls: list[str]  # in the order of their placeholders


def normalise(messages: Sequence[Mapping[str, Any]], *, keep_text_parts: bool) -> Conversation:
    """Content becomes a string where it is text alone (several parts stay a list if the template takes parts), else a
    list of {"type": "text", "text"} and {"type": "image"}. Arguments of tool calls are parsed, as templates expect.

    Raises InvalidRequest naming the message.
    """
    if not messages:
        raise InvalidRequest("messages must hold at least one message", param="messages")
    image_urls: list[str] = []
    normal = []
    for i, message in enumerate(messages):
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise InvalidRequest(f"messages[{i}] has no role", param="messages")
        if role not in _ROLES:
            raise InvalidRequest(
                f"messages[{i}] has the unknown role {role!r}: use {', '.join(_ROLES)}", param="messages"
            )
        if role == "tool" and not isinstance(message.get("tool_call_id"), str):
            raise InvalidRequest(
                f"messages[{i}] needs tool_call_id, a string: the id of the call that it answers", param="messages"
            )
        fields = {key: value for key, value in message.items() if value is not None}
        before = len(image_urls)
        fields["content"] = _content(message.get("content"), f"messages[{i}].content", image_urls, keep_text_parts)
        if len(image_urls) > before and role in _ROLES_WITHOUT_IMAGES:
            raise InvalidRequest(f"messages[{i}]: a message of role {role!r} cannot hold images", param="messages")
        if "tool_calls" in fields:
            fields["tool_calls"] = _tool_calls(fields["tool_calls"], f"messages[{i}].tool_calls")
        normal.append(fields)
    return Conversation(normal, image_urls)


def _content(content: Any, where: str, image_urls: list[str], keep_text_parts: bool) -> Any:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of parts", param="messages")
    parts = [_part(part, f"{where}[{i}]", image_urls) for i, part in enumerate(content)]
    if any(part["type"] == "image" for part in parts) or (keep_text_parts and len(parts) > 1):
        return parts
    return "\n".join(part["text"] for part in parts)


def _part(part: Any, where: str, image_urls: list[str]) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "refusal"):
        text = part.get(kind)
        if not isinstance(text, str):
            raise InvalidRequest(f"{where}.{kind} must be a string", param="messages")
        return {"type": "text", "text": text}
    if kind == "image_url":
        url = part.get("image_url")
        if isinstance(url, dict):
            url = url.get("url")
        if not isinstance(url, str):
            raise InvalidRequest(f"{where}.image_url.url must be a string", param="messages")
        image_urls.append(url)
        return {"type": "image"}
    raise InvalidRequest(f"{where} has the unsupported type {kind!r}: use text or image_url", param="messages")


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise InvalidRequest(f"{where} must be a list", param="messages")
    normal = []
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise InvalidRequest(f"{where}[{i}].function.name is missing", param="messages")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments) if arguments.strip() else {}
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(
                    f"{where}[{i}].function.arguments is not valid JSON: {error}", param="messages"
                ) from error
        if not isinstance(arguments, dict | None):
            raise InvalidRequest(f"{where}[{i}].function.arguments must hold a JSON object", param="messages")
        normal.append(call | {"function": function | {"arguments": arguments or {}}})
    return normal
