"""Images of a prompt: decoding what strangers send, Llama 4's tiling, and the token layout of an image."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from remuda.config.model import ImageTokens, VisionConfig
from remuda.protocol.errors import InvalidRequest
from remuda.protocol.request import ImageInput
from remuda.text.resize import resize_bilinear

MAX_IMAGE_PIXELS = 50_000_000
MAX_IMAGE_SIDE = 32_768
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class TiledImage:
    """One image as the vision tower takes it: `tiles` uint8 [N, 3, S, S]; the global tile last if there are several."""

    tiles: Pixels
    rows: int
    columns: int


def decode_image(data: bytes) -> Pixels:
    """uint8 [H, W, 3] of an encoded image. The size is checked before any pixel is decoded.

    Raises InvalidRequest for what is no image, is truncated, or is too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_IMAGE_PIXELS or max(image.size) > MAX_IMAGE_SIDE:
                    raise InvalidRequest(
                        f"image of {image.width} x {image.height} pixels is too large: "
                        f"at most {MAX_IMAGE_PIXELS // 1_000_000} megapixels and {MAX_IMAGE_SIDE} pixels a side",
                        param="messages",
                    )
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError as error:
        raise InvalidRequest(f"not an image in a known format ({', '.join(FORMATS)})", param="messages") from error
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise InvalidRequest(f"the image cannot be decoded: {error}", param="messages") from error


def tile_image(pixels: Pixels, tile_size: int, max_tiles: int) -> TiledImage:
    """uint8 [H, W, 3] -> tiles: fit onto the best canvas without distortion, pad right and bottom with black, cut."""
    height, width = pixels.shape[:2]
    rows, columns = _canvas(height, width, tile_size, max_tiles)
    canvas_height, canvas_width = rows * tile_size, columns * tile_size
    fitted = resize_bilinear(pixels, *_fit(height, width, canvas_height, canvas_width, tile_size))
    canvas = np.zeros((canvas_height, canvas_width, 3), np.uint8)
    canvas[: fitted.shape[0], : fitted.shape[1]] = fitted
    tiles = canvas.reshape(rows, tile_size, columns, tile_size, 3).transpose(0, 2, 4, 1, 3)
    tiles = tiles.reshape(rows * columns, 3, tile_size, tile_size)
    if rows * columns > 1:
        overview = resize_bilinear(pixels, tile_size, tile_size).transpose(2, 0, 1)
        tiles = np.concatenate([tiles, overview[None]])
    return TiledImage(np.ascontiguousarray(tiles), rows, columns)


def _canvas(height: int, width: int, tile_size: int, max_tiles: int) -> tuple[int, int]:
    """Tile rows and columns: the smallest enlargement that fits, else the mildest reduction; ties by least area.

    Scales are compared in float32 because the reference implementation does: equal scales must tie there and here.
    """
    best: tuple[tuple[bool, float, int], tuple[int, int]] | None = None
    for count in range(max_tiles, 0, -1):
        for rows in (r for r in range(1, count + 1) if count % r == 0):
            columns = count // rows
            scale_h = np.float32(rows * tile_size) / np.float32(height)
            scale_w = np.float32(columns * tile_size) / np.float32(width)
            scale = float(min(scale_h, scale_w))
            enlarges = scale >= 1.0
            key = (not enlarges, scale if enlarges else -scale, count)
            if best is None or key < best[0]:
                best = key, (rows, columns)
    assert best is not None
    return best[1]


def _fit(height: int, width: int, canvas_height: int, canvas_width: int, tile_size: int) -> tuple[int, int]:
    """Size to resize to: as large as the canvas allows, but nothing is enlarged beyond one tile.

    A side that the canvas limits has its scale in float32, as in the reference: the floor can depend on it.
    """
    target_height, scale_h = _target(height, canvas_height, tile_size)
    target_width, scale_w = _target(width, canvas_width, tile_size)
    if scale_w < scale_h:
        return max(1, min(math.floor(height * scale_w), target_height)), target_width
    return target_height, max(1, min(math.floor(width * scale_h), target_width))


def _target(side: int, canvas_side: int, tile_size: int) -> tuple[int, float | np.float32]:
    wanted = max(side, tile_size)
    if canvas_side < wanted:
        return canvas_side, np.float32(canvas_side) / np.float32(side)
    return wanted, wanted / side


def image_layout(image: TiledImage, tokens: ImageTokens, tokens_per_tile: int) -> list[int]:
    """Token ids of one image: rows of tiles with their separators, then the (global) tile, between start and end."""
    patches = [tokens.patch] * tokens_per_tile
    ids = [tokens.image_start]
    if image.rows * image.columns > 1:
        row = ([*patches, tokens.tile_x] * image.columns)[:-1]
        ids += [*row, tokens.tile_y] * image.rows
    return [*ids, tokens.image, *patches, tokens.image_end]


def place_images(
    token_ids: Sequence[int], images: Sequence[TiledImage], tokens: ImageTokens, vision: VisionConfig
) -> tuple[list[int], list[ImageInput]]:
    """Replace the n-th `<|image|>` placeholder by the layout of the n-th image.

    Raises InvalidRequest if there are more or fewer placeholders than images (text may contain one by accident).
    """
    places = [i for i, token in enumerate(token_ids) if token == tokens.image]
    if len(places) != len(images):
        raise InvalidRequest(
            f"the prompt has {len(places)} image placeholders for {len(images)} images; "
            "text must not contain the model's image token",
            param="messages",
        )
    ids: list[int] = []
    inputs: list[ImageInput] = []
    done = 0
    for place, image in zip(places, images, strict=True):
        ids += token_ids[done:place]
        layout = image_layout(image, tokens, vision.tokens_per_tile)
        data = image.tiles.tobytes()
        inputs.append(ImageInput(hashlib.sha256(data).hexdigest(), len(ids), len(layout), image.tiles.shape[0], data))
        ids += layout
        done = place + 1
    ids += token_ids[done:]
    return ids, inputs
