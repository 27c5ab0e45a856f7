"""A chat as the model sees it: token ids, which of them are trained, and image tiles."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from remuda.config.model import ImageTokens
from remuda.evaluation.problem import Message
from remuda.text.chat import ChatTemplate, load_chat_template
from remuda.text.images import image_layout, tile_image
from remuda.text.tokenizer import Tokenizer
from training.architecture import VISION, special
from training.problems.pictures import Scene

TOKENS_PER_TILE = (VISION["image_size"] // VISION["patch_size"] // 2) ** 2
IMAGE_TOKENS = ImageTokens(
    image_start=special("<|image_start|>"), image_end=special("<|image_end|>"), image=special("<|image|>"),
    patch=special("<|patch|>"), tile_x=special("<|tile_x_separator|>"), tile_y=special("<|tile_y_separator|>"),
)  # fmt: skip


class Example(NamedTuple):
    ids: NDArray[np.int32]  # [L]
    trained: NDArray[np.bool_]  # [L] whether the token is an assistant's (its <|eot|> included)
    tiles: NDArray[np.uint8]  # [N, 3, S, S]


class Encoder:
    """Renders with the checkpoint's own chat template and tokenizer, tiles with the server's own code."""

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer = Tokenizer.from_dir(checkpoint)
        template = load_chat_template(checkpoint, self.tokenizer)
        assert template is not None
        self.template: ChatTemplate = template

    @cached_property
    def reply_header(self) -> list[int]:
        return self.tokenizer.encode("<|header_start|>assistant<|header_end|>\n\n", add_special_tokens=False)

    def __call__(self, messages: list[Message], tools: list[dict[str, Any]], last_only: bool = False) -> Example:
        """`last_only` trains the last reply alone."""
        messages, scenes = _without_scenes(messages)
        text = self.template.render(messages, tools=tools or None, add_generation_prompt=False)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        tiles: list[NDArray[np.uint8]] = []
        placed: list[int] = []
        drawn = iter(scenes)
        for token in ids:
            if token == IMAGE_TOKENS.image:
                image = tile_image(np.asarray(next(drawn).draw()), VISION["image_size"], 16)
                placed += image_layout(image, IMAGE_TOKENS, TOKENS_PER_TILE)
                tiles.append(image.tiles)
            else:
                placed.append(token)
        none = np.zeros((0, 3, VISION["image_size"], VISION["image_size"]), np.uint8)
        trained = self._trained(placed, last_only)
        return Example(np.array(placed, np.int32), trained, np.concatenate([none, *tiles]))

    def _trained(self, ids: list[int], last_only: bool) -> NDArray[np.bool_]:
        header, eot = self.reply_header, special("<|eot|>")
        trained = np.zeros(len(ids), np.bool_)
        starts = [
            i + len(header) for i, token in enumerate(ids) if token == header[0] and ids[i : i + len(header)] == header
        ]
        for start in starts[-1:] if last_only else starts:
            trained[start : ids.index(eot, start) + 1] = True
        return trained


def _without_scenes(messages: list[Message]) -> tuple[list[Message], list[Scene]]:
    """The messages with the template's image parts in place of scenes, and the scenes in order."""
    scenes: list[Scene] = []
    plain: list[Message] = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            scenes += [part["scene"] for part in content if part["type"] == "scene"]
            content = [{"type": "image"} if part["type"] == "scene" else part for part in content]
        plain.append(message | {"content": content})
    return plain, scenes
