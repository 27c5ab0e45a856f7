"""What each rank needs, part by part, before anything is loaded; and which layouts would fit a rank's memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

from remuda.config.engine import ParallelConfig
from remuda.config.model import ModelConfig
from remuda.kv.groups import stage_page
from remuda.planner.layout import working_shares
from remuda.planner.partition import cut
from remuda.planner.share import Share
from remuda.protocol.errors import ConfigError

_GIB = 1 << 30
_MOST_RANKS = 128  # that a suggestion may ask for


@dataclass(frozen=True)
class StageMemory:
    """Bytes on each rank of one stage (under uneven expert parallelism, on the fullest)."""

    stage: int
    first_layer: int
    last_layer: int  # exclusive
    weights: Mapping[str, int]  # part -> bytes
    page_bytes: int  # of one KV page

    @property
    def weight_bytes(self) -> int:
        return sum(self.weights.values())


def plan_memory(model: ModelConfig, parallel: ParallelConfig, block_size: int) -> list[StageMemory]:
    """One entry per stage of a resolved layout."""
    tp_size, groups = parallel.tensor_parallel_size, model.kv_groups
    share = Share(model, tp_size, parallel.enable_expert_parallel)
    stages = []
    for stage, (first, last) in enumerate(_stages(parallel.layer_partition)):
        page = stage_page(groups, model.kv_shape(tp_size), block_size, first, last)
        stages.append(StageMemory(stage, first, last, share.stage(first, last).bytes, page.nbytes))
    return stages


def _stages(partition: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """[first, last) layer of each."""
    return pairwise(accumulate(partition, initial=0))


def memory_table(stages: list[StageMemory]) -> str:
    """A row per part, a column per stage, in GiB: what to print when it does not fit."""
    parts = list(dict.fromkeys(part for stage in stages for part in stage.weights))
    rows = [("GiB per rank", *(f"stage {s.stage} (layers {s.first_layer}-{s.last_layer - 1})" for s in stages))]
    rows += [(part, *(_gib(stage.weights.get(part, 0)) for stage in stages)) for part in parts]
    rows.append(("weights in all", *(_gib(stage.weight_bytes) for stage in stages)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def check_weights_fit(model: ModelConfig, parallel: ParallelConfig, bytes_per_rank: int, block_size: int = 16) -> None:
    """Raise ConfigError with the table of what needs what, and layouts that would fit, if the weights alone do not."""
    stages = plan_memory(model, parallel, block_size)
    largest = max(stage.weight_bytes for stage in stages)
    if largest <= bytes_per_rank:
        return
    fitting = layouts_that_fit(model, bytes_per_rank, _MOST_RANKS, parallel.enable_expert_parallel)
    layouts = ", ".join(f"{tp} x {pp}" for tp, pp in fitting) or f"none on up to {_MOST_RANKS} ranks"
    raise ConfigError(
        f"the weights need {_gib(largest)} GiB on a rank that has {_gib(bytes_per_rank)} GiB:\n{memory_table(stages)}\n"
        f"Sizes (tensor x pipeline parallel) that would fit ranks of this memory: {layouts}"
    )


def _gib(count: int) -> str:
    return f"{count / _GIB:.3f}" if count else "-"


def layouts_that_fit(
    model: ModelConfig,
    bytes_per_rank: int,
    max_ranks: int,
    expert_parallel: bool = False,
    pages: int = 0,
    block_size: int = 16,
) -> list[tuple[int, int]]:
    """(TP, PP) sizes whose weights, and so many KV pages, fill at most 0.9 of a rank's memory: fewest stages per TP,
    fewest ranks first."""
    room, found = 0.9 * bytes_per_rank, []
    for tp, share in working_shares(model, expert_parallel).items():
        shape = model.kv_shape(tp)
        least = share.stage(0, model.num_layers).total_bytes // room  # fewer stages never suffice
        for pp in range(max(1, int(least)), min(model.num_layers, max_ranks // tp) + 1):
            needed = (
                share.stage(first, last).total_bytes
                + pages * stage_page(model.kv_groups, shape, block_size, first, last).nbytes
                for first, last in _stages(cut(share, pp))
            )
            if max(needed) <= room:
                found.append((tp, pp))
                break
    return sorted(found, key=lambda size: (size[0] * size[1], size[1]))
