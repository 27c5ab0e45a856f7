"""Image rows land on their patch tokens, whatever the chunks, and do not stay longer than needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from remuda.protocol.request import ImageInput
from remuda.protocol.sampling import SamplingParams
from remuda.protocol.step import NewSequence, StepPlan
from remuda.worker.images import ImageRows
from remuda.worker.state import BatchState

PATCH, SIZE, HIDDEN = 49, 2, 4


class Encoder:
    """Row r of an image is [brightness, r, r, r]: three rows per tile."""

    def __init__(self) -> None:
        self.calls = 0

    def encode_images(self, tiles_N3SS: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        rows = torch.arange(3.0 * len(tiles_N3SS)).unsqueeze(1).expand(-1, HIDDEN).clone()
        rows[:, 0] = float(tiles_N3SS.float().mean())
        return rows


def image(brightness: int, start: int, length: int, tiles: int = 1) -> ImageInput:
    pixels = np.full((tiles, 3, SIZE, SIZE), brightness, np.uint8).tobytes()
    return ImageInput(f"digest-{brightness}", start, length, tiles, pixels)


# Span of 8 positions with 6 patches (2 tiles) among markers, then text, then a span of 3 patches.
PROMPT = [1, 40, PATCH, PATCH, PATCH, 41, PATCH, PATCH, PATCH, 42, 2, 3, PATCH, PATCH, PATCH, 4]
IMAGES = [image(10, 1, 9, tiles=2), image(20, 12, 3)]
EXPECTED = {
    2: (10, 0),
    3: (10, 1),
    4: (10, 2),
    6: (10, 3),
    7: (10, 4),
    8: (10, 5),
    12: (20, 0),
    13: (20, 1),
    14: (20, 2),
}


def run(chunks: list[int], images: ImageRows, slot: int = 0, computed: int = 0) -> torch.Tensor:
    """Prefill PROMPT in `chunks` and return the hidden states of the computed part; untouched rows are -1."""
    state = BatchState(2, 64, 1, 4)
    new = [NewSequence(slot, PROMPT, len(PROMPT), computed, [[]], SamplingParams(), IMAGES)]
    pieces = []
    for step, count in enumerate(chunks):
        plan = StepPlan(step, [slot], [count], new=new)
        new = []
        state.apply(plan)
        images.apply(plan)
        rows = state.rows(plan)
        hidden = torch.full((count, HIDDEN), -1.0)
        images.substitute_(hidden, rows)
        state.advance(rows, plan.step)
        pieces.append(hidden)
    return torch.cat(pieces)


@pytest.mark.parametrize("chunks", [[16], [3, 1, 5, 7], [1] * 16, [13, 3]], ids=str)
def test_rows_land_on_their_patches(chunks: list[int]) -> None:
    encoder = Encoder()
    images = ImageRows(encoder, PATCH, SIZE)  # type: ignore[arg-type]
    hidden = run(chunks, images)
    for position in range(len(PROMPT)):
        brightness, row = EXPECTED.get(position, (-1, -1))
        assert hidden[position].tolist() == [brightness, row, row, row]
    assert encoder.calls == 2
    assert images.cached_bytes == 0  # both spans are past


def test_a_cached_prefix_that_covers_a_span_saves_its_encoding() -> None:
    encoder = Encoder()
    hidden = run([4], ImageRows(encoder, PATCH, SIZE), computed=12)  # type: ignore[arg-type]
    assert encoder.calls == 1
    assert hidden[:, 1].tolist() == [0, 1, 2, -1]


def test_a_cached_prefix_that_ends_within_a_span_starts_at_the_right_row() -> None:
    hidden = run([9], ImageRows(Encoder(), PATCH, SIZE), computed=7)  # type: ignore[arg-type]
    assert hidden[:3, 1].tolist() == [4, 5, -1]


def test_released_and_evicted_images_are_dropped() -> None:
    encoder = Encoder()
    images = ImageRows(encoder, PATCH, SIZE, cache_bytes=1)  # type: ignore[arg-type]
    run([5], images)
    assert images.cached_bytes > 0  # the one in use stays, however small the cache
    images.apply(StepPlan(9, [], [], released=[0]))
    assert images.cached_bytes == 0


def test_sequences_that_share_an_image_encode_it_once() -> None:
    encoder = Encoder()
    images = ImageRows(encoder, PATCH, SIZE)  # type: ignore[arg-type]
    run([5], images, slot=0)
    run([16], images, slot=1)
    assert encoder.calls == 2
    assert images.cached_bytes > 0  # slot 0 still needs the first image
