"""What each rank needs, part by part, before anything is loaded; and which layouts would fit a rank's memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from remuda.config.engine import ParallelConfig
from remuda.config.kv_groups import page_bytes
from remuda.config.model import ModelConfig
from remuda.planner.layout import working_tensor_parallel_sizes
from remuda.planner.partition import partition_layers
from remuda.planner.weights import layer_weights, vision_weights, vocabulary_weights

_GIB = 1 << 30


@dataclass(frozen=True)
class StageMemory:
    """Bytes on each rank of one stage (under uneven expert parallelism, on the fullest)."""

    stage: int
    first_layer: int
    last_layer: int  # exclusive
    weights: dict[str, int]  # part -> bytes, parts that are not there left out
    page_bytes: int  # of one KV page

    @property
    def weight_bytes(self) -> int:
        return sum(self.weights.values())


def plan_memory(model: ModelConfig, parallel: ParallelConfig, block_size: int) -> list[StageMemory]:
    """One entry per stage of a resolved layout."""
    stages, first = [], 0
    for stage, count in enumerate(parallel.layer_partition):
        last = first + count
        weights = _stage_weights(model, parallel, first, last)
        page = page_bytes(model, first, last, parallel.tensor_parallel_size, block_size)
        stages.append(StageMemory(stage, first, last, weights, page))
        first = last
    return stages


def _stage_weights(model: ModelConfig, parallel: ParallelConfig, first: int, last: int) -> dict[str, int]:
    tp, element = parallel.tensor_parallel_size, 4 if model.dtype == "float32" else 2
    layers = [layer_weights(model, i, tp, parallel.enable_expert_parallel) for i in range(first, last)]
    is_first, is_last = first == 0, last == model.num_layers
    head = is_last and not (model.tie_word_embeddings and is_first)
    counts = {
        "vision tower": vision_weights(model) if is_first else 0,
        "embedding": vocabulary_weights(model, tp) if is_first else 0,
        "attention": sum(layer.attention for layer in layers),
        "dense MLPs": sum(layer.dense for layer in layers),
        "routed experts": sum(layer.routed_experts for layer in layers),
        "shared experts": sum(layer.shared_expert for layer in layers),
        "routers": sum(layer.router for layer in layers),
        "norms": sum(layer.norms for layer in layers) + (model.hidden_size if is_last else 0),
        "head": vocabulary_weights(model, tp) if head else 0,
    }
    return {part: count * element for part, count in counts.items() if count}


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


def _gib(count: int) -> str:
    return f"{count / _GIB:.3f}" if count else "-"


def layouts_that_fit(
    model: ModelConfig, bytes_per_rank: int, max_ranks: int, expert_parallel: bool = False
) -> Iterator[tuple[int, int]]:
    """(TP, PP) sizes whose weights take at most 0.9 of a rank's memory; fewest ranks first."""
    sizes = [
        (tp, pp)
        for tp in working_tensor_parallel_sizes(model, expert_parallel)
        for pp in range(1, model.num_layers + 1)
    ]
    for tp, pp in sorted(sizes, key=lambda size: (size[0] * size[1], size[1])):
        if tp * pp > max_ranks:
            return
        parallel = ParallelConfig(tp, pp, expert_parallel, layer_partition=partition_layers(model, tp, pp))
        if max(stage.weight_bytes for stage in plan_memory(model, parallel, block_size=16)) <= 0.9 * bytes_per_rank:
            yield tp, pp
