"""A chat request's messages -> a prompt, without holding up anybody else's tokens."""

from __future__ import annotations

from typing import Any

from remuda.protocol.errors import InvalidRequest
from remuda.server.media import MediaLoader
from remuda.server.protocol import ChatRequest, TokenizeRequest
from remuda.server.service import Service
from remuda.text.prompt import Prompt


async def chat_prompt(service: Service, request: ChatRequest | TokenizeRequest) -> Prompt:
    """Render, tokenize, and put the images in. Raises InvalidRequest for whatever does not fit."""
    prompter = service.prompter
    conversation = prompter.conversation(request.messages or [])
    count, limit = len(conversation.image_urls), service.config.max_images_per_prompt
    if count > limit:
        raise InvalidRequest(f"{count} images in one prompt: at most {limit} (--limit-mm-per-prompt)", param="messages")
    with_tools = request.tools and (isinstance(request, TokenizeRequest) or request.tool_choice != "none")
    text = prompter.template.render(
        conversation.messages,
        tools=request.tools if with_tools else None,
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final_message=bool(request.continue_final_message),
        kwargs=_template_kwargs(request, prompter.template.variables),
    )
    # The template has written BOS, so the default is to add nothing.
    (token_ids,) = await service.encode([text], add_special_tokens=bool(request.add_special_tokens))
    if not conversation.image_urls:
        return prompter.with_images(text, token_ids, [])
    loader = MediaLoader(service.config)
    tiles = [await service.off_loop(prompter.tiles, await loader.load(url)) for url in conversation.image_urls]
    return await service.off_loop(prompter.with_images, text, token_ids, tiles)


def _template_kwargs(request: ChatRequest | TokenizeRequest, variables: frozenset[str]) -> dict[str, Any] | None:
    """chat_template_kwargs, and reasoning_effort where the template reads it. Raises InvalidRequest where not."""
    effort = request.reasoning_effort if isinstance(request, ChatRequest) else None
    if effort is None:
        return request.chat_template_kwargs
    if "reasoning_effort" not in variables:
        raise InvalidRequest(
            "reasoning_effort: this model's chat template does not know it; some have enable_thinking, to be set in "
            "chat_template_kwargs",
            param="reasoning_effort",
            code="unsupported",
        )
    return {"reasoning_effort": effort} | (request.chat_template_kwargs or {})
