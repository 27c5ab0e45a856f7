"""Image preprocessing, pixel for pixel as the reference: torch's uint8 resize and transformers' canvas rules."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from remuda.protocol.errors import InvalidRequest
from remuda.text.data_url import read_data_url
from remuda.text.images import TiledImage, decode_image, image_layout, place_images, tile_image
from remuda.text.resize import resize_bilinear
from tests.text import tiny

side = st.integers(1, 200)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def torch_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    y = torch.nn.functional.interpolate(x, size=(height, width), mode="bilinear", antialias=True)
    return y[0].permute(1, 2, 0).numpy()


@settings(max_examples=150, deadline=None)
@given(side, side, side, side, st.integers(0, 1000))
def test_resize_is_torchs_bit_for_bit(height: int, width: int, new_height: int, new_width: int, seed: int) -> None:
    image = random_image(height, width, seed)
    np.testing.assert_array_equal(
        resize_bilinear(image, new_height, new_width), torch_resize(image, new_height, new_width)
    )


@pytest.mark.parametrize("size", [(1080, 1920, 336, 597), (2000, 333, 1344, 223), (37, 4000, 3, 336), (1, 1, 336, 336)])
def test_resize_of_large_images_is_torchs(size: tuple[int, int, int, int]) -> None:
    image = random_image(size[0], size[1])
    np.testing.assert_array_equal(resize_bilinear(image, *size[2:]), torch_resize(image, *size[2:]))


def reference_geometry(height: int, width: int, size: int, max_tiles: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Canvas in tiles and the size of the picture on it, in torch's arithmetic (float32 scales), written plainly."""
    canvases = torch.tensor(
        [(rows * size, n // rows * size) for n in range(max_tiles, 0, -1) for rows in range(1, n + 1) if n % rows == 0]
    )
    scales = torch.minimum(canvases[:, 0] / height, canvases[:, 1] / width)
    enlarging = scales[scales >= 1]
    scale = enlarging.min() if len(enlarging) else scales.max()
    fitting = canvases[scales == scale]
    canvas = fitting[(fitting[:, 0] * fitting[:, 1]).argmin()]
    # Python's min() returns the int unless the tensor is smaller: only then is the scale float32.
    target_h, target_w = (min(max(a, size), b) for a, b in zip((height, width), canvas, strict=True))
    scale_h, scale_w = target_h / height, target_w / width
    if scale_w < scale_h:
        fitted = (min(int(torch.floor(torch.as_tensor(height * scale_w))), int(target_h)), int(target_w))
    else:
        fitted = (int(target_h), min(int(torch.floor(torch.as_tensor(width * scale_h))), int(target_w)))
    rows, columns = (int(c) // size for c in canvas)
    return (rows, columns), (max(fitted[0], 1), max(fitted[1], 1))


def sizes() -> list[tuple[int, int]]:
    rng = random.Random(0)
    found = [(28, 28), (28, 56), (56, 28), (57, 56), (1, 300), (300, 1), (112, 112), (113, 113), (448, 28), (5, 5)]
    for limit in (20, 60, 300, 900):
        found += [(rng.randint(1, limit), rng.randint(1, limit)) for _ in range(12)]
    found += [(n := rng.randint(1, 200), n * rng.randint(1, 4)) for _ in range(12)]
    return found


@pytest.mark.parametrize("size", sizes(), ids=lambda s: f"{s[0]}x{s[1]}")
def test_tiles_are_the_references(size: tuple[int, int]) -> None:
    tile = tiny.IMAGE_SIZE
    image = random_image(*size)
    (rows, columns), fitted = reference_geometry(*size, tile, 16)
    canvas = np.zeros((rows * tile, columns * tile, 3), np.uint8)
    canvas[: fitted[0], : fitted[1]] = torch_resize(image, *fitted)
    expected = [
        canvas[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile] for y in range(rows) for x in range(columns)
    ]
    if rows * columns > 1:
        expected.append(torch_resize(image, tile, tile))
    tiled = tile_image(image, tile, 16)
    assert (tiled.rows, tiled.columns) == (rows, columns)
    assert rows * columns <= 16
    np.testing.assert_array_equal(tiled.tiles, np.stack(expected).transpose(0, 3, 1, 2))


def names(ids: list[int]) -> list[str]:
    return [tiny.tokenizer().token_text(token).strip("<|>") for token in ids]


def blank(rows: int, columns: int) -> TiledImage:
    count = rows * columns + (rows * columns > 1)
    return TiledImage(np.zeros((count, 3, 2, 2), np.uint8), rows, columns)


def test_layout_of_an_image(tmp_path_factory: pytest.TempPathFactory) -> None:
    tokens = tiny.model_config(tmp_path_factory.getbasetemp()).image_tokens
    assert tokens is not None
    assert names(image_layout(blank(1, 1), tokens, 2)) == ["image_start", "image", "patch", "patch", "image_end"]
    assert names(image_layout(blank(2, 2), tokens, 1)) == [
        "image_start",
        "patch", "tile_x_separator", "patch", "tile_y_separator",
        "patch", "tile_x_separator", "patch", "tile_y_separator",
        "image", "patch", "image_end",
    ]  # fmt: skip


def test_placeholders_become_images_in_order(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = tiny.model_config(tmp_path_factory.getbasetemp())
    assert model.image_tokens is not None and model.vision is not None
    tokens, vision = model.image_tokens, model.vision
    images = [tile_image(random_image(20, 20), 28, 16), tile_image(random_image(30, 90), 28, 16)]
    ids, inputs = place_images([1, tokens.image, 2, 3, tokens.image, 4], images, tokens, vision)
    for image, given_ in zip(inputs, images, strict=True):
        span = ids[image.start : image.start + image.length]
        assert span[0] == tokens.image_start and span[-1] == tokens.image_end
        assert span.count(tokens.patch) == image.tile_count * vision.tokens_per_tile
        assert image.tiles == given_.tiles.tobytes()
    assert [ids[0], ids[inputs[0].start + inputs[0].length], ids[-1]] == [1, 2, 4]
    assert inputs[0].digest != inputs[1].digest
    with pytest.raises(InvalidRequest, match="2 image placeholders for 1 images"):
        place_images([tokens.image, tokens.image], images[:1], tokens, vision)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK", "I;16", "LA"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    form = "TIFF" if mode == "CMYK" else "PNG"
    image = Image.new("L", (5, 3), 128).convert("RGB") if mode in ("RGB", "P", "CMYK") else None
    image = image.convert(mode) if image else Image.new(mode, (5, 3))
    assert decode_image(encoded(image, form)).shape == (3, 5, 3)


def test_a_photograph_is_turned_as_its_camera_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decode_image(encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif)).shape == (40, 20, 3)


def test_hostile_images_are_refused() -> None:
    good = encoded(Image.fromarray(random_image(50, 50)))
    for data in (b"", b"hello", good[:100], good[:-200], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"):
        with pytest.raises(InvalidRequest):
            decode_image(data)
    bomb = encoded(Image.new("1", (10_000, 10_000)))
    with pytest.raises(InvalidRequest, match="10000 x 10000 pixels is too large"):
        decode_image(bomb)
    with pytest.raises(InvalidRequest, match="pixels"):
        decode_image(encoded(Image.new("1", (20_000, 20_000))))
    with pytest.raises(InvalidRequest, match="too large"):
        decode_image(encoded(Image.new("1", (40_000, 1))))


def test_data_urls() -> None:
    assert read_data_url("data:image/png;base64,aGk=") == b"hi"
    assert read_data_url("data:,a%20b") == b"a b"
    for url in ("data:image/png;base64", "data:;base64,###", "http://x", "data:;base64,aGk"):
        with pytest.raises(InvalidRequest):
            read_data_url(url)
    with pytest.raises(InvalidRequest, match="exceeds 4 bytes"):
        read_data_url("data:,12345", limit=4)
    with pytest.raises(InvalidRequest, match="exceeds 4 bytes"):
        read_data_url("data:," + "1" * 100, limit=4)
