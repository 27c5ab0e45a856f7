"""Image rows for the first stage: encoded when a span is first scheduled, dropped when it is past.

T tokens of the step, H hidden size, R rows of one image.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import torch

from remuda.models.interfaces import SupportsImages
from remuda.protocol.request import ImageInput
from remuda.protocol.step import StepPlan
from remuda.worker.state import Ints, Rows

DEFAULT_CACHE_BYTES = 256 << 20


@dataclass(slots=True)
class _Span:
    """One image of one resident sequence, until the sequence has computed past it."""

    image: ImageInput
    patch_positions: Ints = field(default_factory=lambda: np.empty(0, np.int64))


class ImageRows:
    """Which image rows belong in which positions of a step. Decisions follow from plans only, so that the TP ranks of
    the first stage encode together. Rows of an image are kept while a resident sequence still needs them and the
    cache has room (`cache_bytes`); an image that lost its place is encoded again."""

    def __init__(
        self, encoder: SupportsImages, patch_token: int, tile_size: int, cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        self._encoder = encoder
        self._patch_token = patch_token
        self._tile_size = tile_size
        self._cache_bytes = cache_bytes
        self._spans: dict[int, list[_Span]] = {}  # by slot, in order of position
        self._rows: OrderedDict[str, torch.Tensor] = OrderedDict()  # by digest, least recently used first

    @property
    def cached_bytes(self) -> int:
        return sum(rows.nbytes for rows in self._rows.values())

    def apply(self, plan: StepPlan) -> None:
        """Follow released and new sequences."""
        for slot in plan.released:
            self._forget(slot)
        for sequence in plan.new:
            self._forget(sequence.slot)
            spans = [_Span(image) for image in sequence.images if image.start + image.length > sequence.computed]
            for span in spans:
                start, end = span.image.start, span.image.start + span.image.length
                tokens = np.array(sequence.token_ids[start:end])
                span.patch_positions = start + np.flatnonzero(tokens == self._patch_token)
            if spans:
                self._spans[sequence.slot] = spans

    def touches(self, rows: Rows) -> bool:
        """Whether a row of the step belongs to a sequence that still has an image before it or in it."""
        return bool(self._spans) and not self._spans.keys().isdisjoint(rows.slots_S.tolist())

    def substitute_(self, hidden_TH: torch.Tensor, rows: Rows) -> None:
        """Overwrite the embeddings of patch tokens with the rows of their images."""
        if not self._spans:
            return
        for row, slot in enumerate(rows.slots_S.tolist()):
            for span in list(self._spans.get(slot, ())):
                self._substitute_span(hidden_TH, rows, row, span)
            self._drop_past(slot, int(rows.starts_S[row] + rows.counts_S[row]))

    def _substitute_span(self, hidden_TH: torch.Tensor, rows: Rows, row: int, span: _Span) -> None:
        start = int(rows.starts_S[row])
        first, last = np.searchsorted(span.patch_positions, (start, start + int(rows.counts_S[row]))).tolist()
        if first == last:
            return
        encoded_RH = self._encode(span.image)[first:last]
        at = span.patch_positions[first : first + len(encoded_RH)] - start + int(rows.query_start_S1[row])
        hidden_TH[torch.from_numpy(at).to(hidden_TH.device)] = encoded_RH.to(hidden_TH.dtype)

    def _encode(self, image: ImageInput) -> torch.Tensor:
        rows_RH = self._rows.get(image.digest)
        if rows_RH is None:
            shape = (image.tile_count, 3, self._tile_size, self._tile_size)
            tiles = torch.from_numpy(np.frombuffer(bytearray(image.tiles), np.uint8).reshape(shape))
            rows_RH = self._rows[image.digest] = self._encoder.encode_images(tiles)
        self._rows.move_to_end(image.digest)
        while len(self._rows) > 1 and self.cached_bytes > self._cache_bytes:
            self._rows.popitem(last=False)
        return rows_RH

    def _drop_past(self, slot: int, computed: int) -> None:
        spans = self._spans.get(slot)
        if spans and computed >= spans[0].image.start + spans[0].image.length:
            self._keep(slot, [span for span in spans if span.image.start + span.image.length > computed])

    def _forget(self, slot: int) -> None:
        if slot in self._spans:
            self._keep(slot, [])

    def _keep(self, slot: int, spans: list[_Span]) -> None:
        """Replace the spans of a slot; rows that no resident sequence needs any more are dropped."""
        gone = {span.image.digest for span in self._spans.pop(slot)}
        if spans:
            self._spans[slot] = spans
        needed = {span.image.digest for resident in self._spans.values() for span in resident}
        for digest in gone - needed:
            self._rows.pop(digest, None)
