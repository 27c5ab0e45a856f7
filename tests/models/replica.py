"""Runs every rank of a TP x PP layout in one process: a thread per TP rank, stage after stage, with a small KV pool."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from remuda.config.model import ModelConfig
from remuda.kv.groups import stage_page
from remuda.layers.batch import ForwardBatch
from remuda.models.interfaces import Model
from remuda.models.registry import build_model, read_model_config
from remuda.parallel.collectives import Communicator
from remuda.parallel.topology import Topology


class ThreadComm(Communicator):
    """Collectives among threads: deposit, meet, combine, meet."""

    def __init__(self, rank: int, box: list[torch.Tensor | None], barrier: threading.Barrier) -> None:
        self.size, self.rank, self._box, self._barrier = len(box), rank, box, barrier

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        self._box[self.rank] = x
        self._barrier.wait()
        gathered = torch.stack([part for part in self._box if part is not None])
        self._barrier.wait()
        return gathered

    def all_reduce_(self, x: torch.Tensor) -> torch.Tensor:
        return x.copy_(self.all_gather(x.clone()).sum(0))


class Replica:
    """`forward` runs one micro-batch of (sequence, token count) rows and returns logits of every token."""

    def __init__(
        self, path: Path, tp: int = 1, partition: tuple[int, ...] = (), ep: bool = False, dtype: str = "float32",
        block_size: int = 16, pages: int = 512,
    ) -> None:  # fmt: skip
        self.config: ModelConfig = read_model_config(path, dtype)
        self.block_size = block_size
        self.groups = self.config.kv_groups
        partition = partition or (self.config.num_layers,)
        self.stages: list[list[Model]] = []
        self.kv = []
        first = 0
        for stage, count in enumerate(partition):
            box: list[torch.Tensor | None] = [None] * tp
            barrier = threading.Barrier(tp)
            ranks, pools = [], []
            for rank in range(tp):
                topology = Topology(tp, len(partition), rank, stage, first, first + count, self.config.num_layers, ep)
                model = build_model(self.config, topology, ThreadComm(rank, box, barrier))  # type: ignore[arg-type]
                model.load()
                page = stage_page(self.groups, self.config.kv_shape(tp), block_size, first, first + count)
                make = lambda part: torch.zeros(pages, *part.shape, dtype=getattr(torch, part.dtype))  # noqa: E731
                pools.append([tuple(map(make, parts)) for parts in page.depths])
                ranks.append(model)
            self.stages.append(ranks)
            self.kv.append(pools)
            first += count
        self.free = torch.randperm(pages - 1, generator=torch.Generator().manual_seed(0)).add(1).tolist()
        self.tables: dict[str, list[list[int]]] = {}
        self.computed: dict[str, int] = {}
        self.threads = ThreadPoolExecutor(tp)

    def batch(self, rows: list[tuple[str, int]]) -> ForwardBatch:
        positions, starts, contexts = [], [0], []
        for name, count in rows:
            done = self.computed.get(name, 0)
            tables = self.tables.setdefault(name, [[] for _ in self.groups])
            for table in tables:
                while len(table) * self.block_size < done + count:
                    table.append(self.free.pop())
            positions += range(done, done + count)
            starts.append(starts[-1] + count)
            contexts.append(done + count)
            self.computed[name] = done + count
        width = max(len(self.tables[name][0]) for name, _ in rows)
        padded = [
            [self.tables[name][g] + [0] * (width - len(self.tables[name][g])) for name, _ in rows]
            for g in range(len(self.groups))
        ]
        tables_GSB = torch.tensor(padded, dtype=torch.int32)
        positions_T = torch.tensor(positions)
        row_T = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([count for _, count in rows]))
        pages_GT = tables_GSB[:, row_T, positions_T // self.block_size].long()
        decodes = next((i for i, (_, count) in enumerate(rows) if count > 1), len(rows))
        return ForwardBatch(
            positions_T, torch.tensor(starts, dtype=torch.int32), torch.tensor(contexts, dtype=torch.int32), tables_GSB,
            pages_GT * self.block_size + positions_T % self.block_size, [], max(count for _, count in rows), decodes,
            self.block_size,
        )  # fmt: skip

    def on_ranks(self, stage: int, call) -> list[torch.Tensor]:
        """call(rank, model) on every TP rank of a stage, in threads."""

        def guarded(rank: int) -> torch.Tensor:
            with torch.inference_mode():
                return call(rank, self.stages[stage][rank])

        return list(self.threads.map(guarded, range(len(self.stages[stage]))))

    def forward(self, rows: list[tuple[str, list[int]]], images: dict[int, torch.Tensor] | None = None) -> torch.Tensor:
        """Logits [T, vocabulary] of the rows' tokens. `images`: token index in the batch -> its embedding."""
        batch = self.batch([(name, len(ids)) for name, ids in rows])
        ids_T = torch.tensor([token for _, ids in rows for token in ids])
        hidden = [x_TH.clone() for x_TH in self.on_ranks(0, lambda rank, model: model.embed(ids_T))]
        for index, row in (images or {}).items():
            for x_TH in hidden:
                x_TH[index] = row
        for stage, pools in enumerate(self.kv):
            received = hidden

            def run(rank: int, model: Model) -> torch.Tensor:
                mine = ForwardBatch(*(getattr(batch, f) for f in ForwardBatch.__slots__[:-1]))
                mine.kv = pools[rank]  # noqa: B023
                return model.run_layers(received[rank].clone(), mine)  # noqa: B023

            hidden = self.on_ranks(stage, run)
            assert all(torch.equal(hidden[0], other) for other in hidden[1:])
            hidden = [hidden[0]] * len(self.stages[min(stage + 1, len(self.kv) - 1)])
        logits = torch.cat(self.on_ranks(len(self.kv) - 1, lambda rank, model: model.logits(hidden[rank])), dim=-1)
        assert (logits[:, self.config.vocab_size :] == float("-inf")).all()
        return logits[:, : self.config.vocab_size]

    def encode_images(self, tiles: torch.Tensor) -> torch.Tensor:
        rows = self.on_ranks(0, lambda rank, model: model.encode_images(tiles))  # type: ignore[attr-defined]
        assert all(torch.equal(rows[0], other) for other in rows[1:])
        return rows[0]
