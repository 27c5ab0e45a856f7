"""Chat messages as clients send them -> the form that templates know, with images taken out -> a prompt."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from remuda.protocol.errors import InvalidRequest
from remuda.server.media import MediaLoader
from remuda.server.protocol import ChatRequest, TokenizeRequest
from remuda.server.service import Prompt, Service
from remuda.text.images import TiledImage, decode_image, place_images, tile_image

_ROLES_WITHOUT_IMAGES = ("system", "developer", "assistant", "tool")


class Conversation(NamedTuple):
    messages: list[dict[str, Any]]  # in transformers' form
    image_urls: list[str]  # in the order of their placeholders


async def chat_prompt(service: Service, request: ChatRequest | TokenizeRequest) -> Prompt:
    """Render, tokenize, and put the images in. Raises InvalidRequest for whatever does not fit."""
    template = service.template
    conversation = normalise(request.messages or [], keep_text_parts=template.takes_parts)
    _check_images(service, conversation)
    tools = request.tools if request.tools and getattr(request, "tool_choice", None) != "none" else None
    text = template.render(
        conversation.messages,
        tools=tools,
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final_message=bool(request.continue_final_message),
        kwargs=request.chat_template_kwargs,
    )
    # The template has written BOS.
    token_ids = await service.encode(text, add_special_tokens=bool(request.add_special_tokens))
    if service.model.vision is None or service.model.image_tokens is None:
        return Prompt(token_ids, text)
    loader = MediaLoader(service.config)
    images = [await _tiles(service, await loader.load(url)) for url in conversation.image_urls]
    token_ids, inputs = place_images(token_ids, images, service.model.image_tokens, service.model.vision)
    return Prompt(token_ids, text, inputs)


def normalise(messages: list[dict[str, Any]], *, keep_text_parts: bool) -> Conversation:
    """Check every message and bring its content into the form that templates expect.

    Content is a string where it is text alone (parts are joined unless the template takes parts), else a list of
    {"type": "text", "text"} and {"type": "image"}. Arguments of tool calls are parsed, as templates expect.
    """
    image_urls: list[str] = []
    normal = []
    for i, message in enumerate(messages):
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise InvalidRequest(f"messages[{i}] has no role", param="messages")
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
    if kind in ("text", "input_text", "refusal"):
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise InvalidRequest(f"{where}.text must be a string", param="messages")
        return {"type": "text", "text": text}
    if kind in ("image_url", "input_image"):
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
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest(f"{where}[{i}].function.name is missing", param="messages")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments) if arguments.strip() else {}
            except ValueError as error:
                raise InvalidRequest(
                    f"{where}[{i}].function.arguments is not valid JSON: {error}", param="messages"
                ) from error
        normal.append(call | {"function": function | {"arguments": arguments or {}}})
    return normal


def _check_images(service: Service, conversation: Conversation) -> None:
    count, limit = len(conversation.image_urls), service.config.max_images_per_prompt
    if count and (service.model.vision is None or service.model.image_tokens is None):
        raise InvalidRequest("this model takes no images", param="messages")
    if count > limit:
        raise InvalidRequest(f"{count} images in one prompt: at most {limit} (--limit-mm-per-prompt)", param="messages")


async def _tiles(service: Service, data: bytes) -> TiledImage:
    vision = service.model.vision
    assert vision is not None
    return await service.off_loop(lambda: tile_image(decode_image(data), vision.image_size, vision.max_tiles))
