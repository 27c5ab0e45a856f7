"""From text or a conversation to the prompt that the engine takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from remuda.config.model import ModelConfig
from remuda.protocol.errors import InvalidRequest
from remuda.protocol.request import ImageInput
from remuda.text.chat import ChatTemplate, load_chat_template
from remuda.text.data_url import read_data_url
from remuda.text.images import TiledImage, decode_image, place_images, tile_image
from remuda.text.messages import Conversation, normalise
from remuda.text.tokenizer import Tokenizer


class Prompt(msgspec.Struct):
    """One prompt, ready for the engine."""

    token_ids: list[int]
    text: str | None = None  # None where the client sent token ids
    images: Sequence[ImageInput] = ()


class Prompter:
    """Knows the model's chat template, tokenizer and image layout.

    `chat` does everything at once; a server, which must not wait, takes the same steps one by one.
    """

    def __init__(self, model: ModelConfig, tokenizer: Tokenizer, chat_template: str | None = None) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._template = load_chat_template(model.path, tokenizer, chat_template)

    @property
    def template(self) -> ChatTemplate:
        if self._template is None:
            raise InvalidRequest(
                "this model has no chat template: use plain completions, or set one with --chat-template FILE"
            )
        return self._template

    @property
    def template_source(self) -> str:
        """The chat template itself; "" if there is none."""
        return self._template.source if self._template else ""

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """A conversation in OpenAI's form (images as data: URLs). Raises InvalidRequest."""
        conversation = self.conversation(messages)
        text = self.template.render(conversation.messages, tools=tools, add_generation_prompt=add_generation_prompt)
        tiles = [self.tiles(read_data_url(url)) for url in conversation.image_urls]
        return self.with_images(text, self._tokenizer.encode(text, add_special_tokens=False), tiles)

    def conversation(self, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        """The messages in the form that this model's template takes."""
        conversation = normalise(messages, keep_text_parts=self.template.takes_parts)
        if conversation.image_urls and self._model.vision is None:
            raise InvalidRequest("this model takes no images", param="messages")
        return conversation

    def tiles(self, data: bytes) -> TiledImage:
        """An encoded image as the vision tower takes it."""
        vision = self._model.vision
        assert vision is not None
        return tile_image(decode_image(data), vision.image_size, vision.max_tiles)

    def with_images(self, text: str | None, token_ids: list[int], tiles: Sequence[TiledImage]) -> Prompt:
        """Put the images' layouts in place of their placeholders."""
        vision, tokens = self._model.vision, self._model.image_tokens
        if vision is None or tokens is None:
            return Prompt(token_ids, text)
        token_ids, images = place_images(token_ids, tiles, tokens, vision)
        return Prompt(token_ids, text, images)
