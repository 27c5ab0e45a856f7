"""The vision tower against transformers, tiles dealt over ranks, and image rows inside a prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.conftest import PROMPT
from tests.models.reference import load_reference, reference_logits
from tests.models.replica import Replica

TILES = torch.randint(0, 256, (11, 3, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def pixels(tiles: torch.Tensor) -> torch.Tensor:
    """What the published image processor makes of tiles: every operation rounds to bfloat16."""
    return ((tiles.bfloat16() * 0.00392156862745098) - torch.tensor(0.5).bfloat16()) / torch.tensor(0.5).bfloat16()


@pytest.fixture(scope="module")
def reference(tiny: Callable[[str], Path]) -> Any:
    return load_reference(tiny("maverick"))


@pytest.fixture(scope="module")
def rows(reference: Any) -> torch.Tensor:
    with torch.no_grad():
        features = reference.vision_model(pixels(TILES).float()).last_hidden_state
        return reference.multi_modal_projector(features.flatten(0, 1))


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 3, 11])
def test_rows_of_tiles(tiny: Callable[[str], Path], rows: torch.Tensor, tp: int, count: int) -> None:
    replica = Replica(tiny("maverick"), tp=tp, partition=(3, 5))
    got = replica.encode_images(TILES[:count])
    per_tile = replica.config.vision.tokens_per_tile
    assert got.shape == (count * per_tile, replica.config.hidden_size)
    assert (got - rows[: count * per_tile]).abs().max() < 1e-4


def test_only_the_first_stage_holds_the_tower(tiny: Callable[[str], Path]) -> None:
    replica = Replica(tiny("maverick"), partition=(4, 4))
    sources = [
        {piece.source.split(".")[0] for parameter in stage[0].parameters() for piece in parameter.slices}
        for stage in replica.stages
    ]
    assert sources == [{"vision_model", "multi_modal_projector", "language_model"}, {"language_model"}]


def test_a_prompt_with_two_images_in_pieces(tiny: Callable[[str], Path], reference: Any, rows: torch.Tensor) -> None:
    replica = Replica(tiny("maverick"), tp=2, partition=(2, 6))
    patch = replica.config.image_tokens.patch
    per_tile = replica.config.vision.tokens_per_tile
    ids = [*PROMPT[:10], *[patch] * (2 * per_tile), *PROMPT[10:60], *[patch] * per_tile, *PROMPT[60:90]]
    want = reference_logits(reference, ids, pixels(TILES[:3])).log_softmax(-1)
    places = [i for i, token in enumerate(ids) if token == patch]
    embeddings = dict(zip(places, replica.encode_images(TILES[:3]), strict=True))
    logits = []
    for at in range(0, len(ids), 13):
        here = {place - at: row for place, row in embeddings.items() if at <= place < at + 13}
        logits.append(replica.forward([("a", ids[at : at + 13])], here))
    assert (torch.cat(logits).log_softmax(-1) - want).abs().max() < 1e-4
