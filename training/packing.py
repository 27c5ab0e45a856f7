"""Examples packed into rows of a fixed number of tokens, by worker processes that never run dry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from training.architecture import CHUNK, PAD, PATCH
from training.dialogues import dialogue, mix_at
from training.examples import TOKENS_PER_TILE, Encoder, Example
from training.model import PackedBatch
from training.problems.held_out import held_out_problems
from training.problems.problem import assistant

POOL = 24  # examples to choose from when a row is filled
LONGEST = 8192  # tokens of a document, at most


@dataclass(frozen=True)
class RowShape:
    """What a row has room for; constant, so that one compiled and captured step serves all rows."""

    tokens: int
    tiles: int

    @property
    def documents(self) -> int:
        return self.tokens // 112

    @property
    def chunks(self) -> int:
        return self.tokens // CHUNK + self.documents

    def takes(self, examples: list[Example]) -> bool:
        """Whether they fit, with a token of padding to spare."""
        tokens, tiles = sum(len(e.ids) for e in examples), sum(len(e.tiles) for e in examples)
        if max(len(e.ids) for e in examples) > LONGEST:  # the attention kernel would leave the rest unwritten
            return False
        return tokens < self.tokens and tiles <= self.tiles and len(examples) + self.tokens // LONGEST < self.documents


def pack(examples: list[Example], shape: RowShape) -> PackedBatch:
    """Lay examples one behind the other and fill the row with padding (documents of its own): one shape for all."""
    assert shape.takes(examples)
    lengths = [len(e.ids) for e in examples]
    rest = shape.tokens - sum(lengths)
    ids = np.concatenate([*(e.ids for e in examples), np.full(rest, PAD, np.int32)])
    lengths += pieces(rest, LONGEST)
    labels, weights = np.full(shape.tokens, -100, np.int64), np.zeros(shape.tokens, np.float32)
    start = 0
    for example in examples:
        place = start + np.flatnonzero(example.trained) - 1  # the position that predicts it
        labels[place] = example.ids[example.trained]
        weights[place] = reply_weights(example.trained)
        start += len(example.ids)
    drawn = np.concatenate([e.tiles for e in examples])
    patches = np.flatnonzero(ids == PATCH)
    spare = shape.tiles - len(drawn)  # blank tiles, whose rows all go to the last token, which is padding
    return PackedBatch(
        ids_T=torch.from_numpy(ids.astype(np.int64)),
        positions_T=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])),
        labels_T=torch.from_numpy(labels),
        weights_T=torch.from_numpy(weights),
        documents=borders(lengths, shape.documents),
        chunks=borders([piece for n in lengths for piece in pieces(n, CHUNK)], shape.chunks),
        longest=LONGEST,
        patches_P=torch.from_numpy(np.concatenate([patches, np.full(spare * TOKENS_PER_TILE, shape.tokens - 1)])),
        tiles_N3SS=torch.from_numpy(np.concatenate([drawn, np.zeros((spare, *drawn.shape[1:]), np.uint8)])),
    )


def pieces(length: int, most: int) -> list[int]:
    return [most] * (length // most) + ([length % most] if length % most else [])


def borders(lengths: list[int], count: int) -> torch.Tensor:
    """int32 [count + 1]: empty spans at the end make up the number."""
    ends = np.cumsum(lengths)
    return torch.tensor([0, *ends, *[ends[-1]] * (count - len(lengths))], dtype=torch.int32)


def reply_weights(trained: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Each trained token weighs 1 / sqrt(length of its reply), so that long replies do not drown short ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], trained.astype(np.int8), [0]])))
    lengths = edges[1::2] - edges[::2]
    return np.repeat(lengths**-0.5, lengths).astype(np.float32)


class Rows(IterableDataset[PackedBatch]):
    """Endless packed rows. `progress` (shared, 0 to 1) steers the curriculum."""

    def __init__(self, checkpoint: Path, shape: RowShape, seed: int, progress: Any) -> None:
        self.checkpoint, self.shape, self.seed, self.progress = checkpoint, shape, seed, progress

    def __iter__(self) -> Iterator[PackedBatch]:
        worker = get_worker_info()
        rng = Random(f"{self.seed}/{worker.id if worker else 0}")
        encode = Encoder(self.checkpoint)

        def example() -> Example:
            while True:
                made = encode(*dialogue(rng, mix_at(self.progress.value)))
                if self.shape.takes([made]):
                    return made

        pool: list[Example] = []
        while True:
            chosen: list[Example] = []
            while True:
                pool += [example() for _ in range(POOL - len(pool))]
                place = next((i for i, e in enumerate(pool) if self.shape.takes([*chosen, e])), None)
                if place is None:
                    break
                chosen.append(pool.pop(place))
            yield pack(chosen, self.shape)


class HeldOutRows(IterableDataset[tuple[PackedBatch, list[str]]]):
    """Held-out problems packed with their right answers, and each row's documents' names, "skill/variant"."""

    def __init__(self, checkpoint: Path, skills: list[str], count: int, shape: RowShape) -> None:
        self.checkpoint, self.skills, self.count, self.shape = checkpoint, skills, count, shape

    def __iter__(self) -> Iterator[tuple[PackedBatch, list[str]]]:
        encode = Encoder(self.checkpoint)
        chosen: list[Example] = []
        names: list[str] = []
        for skill in self.skills:
            for problem in held_out_problems(skill, self.count, seed=1):
                example = encode([*problem.messages, assistant(problem.answer)], list(problem.tools), last_only=True)
                if not self.shape.takes([*chosen, example]):
                    yield pack(chosen, self.shape), names
                    chosen, names = [], []
                chosen.append(example)
                names.append(f"{skill}/{problem.variant}")
        yield pack(chosen, self.shape), names


def row_loader(rows: IterableDataset[Any], workers: int, ahead: int = 4) -> DataLoader[Any]:
    kwargs: dict[str, Any] = {"prefetch_factor": ahead} if workers else {}
    return DataLoader(rows, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available(), **kwargs)
