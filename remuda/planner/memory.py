"""What each rank needs, part by part, before anything is loaded; and which layouts would fit a rank's memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from remuda.config.engine import ParallelConfig
from remuda.config.model import ModelConfig
from remuda.kv.groups import stage_page
from remuda.planner.layout import working_tensor_parallel_sizes
from remuda.planner.partition import partition_layers
from remuda.planner.weights import (
    layer_bytes,
    layer_weights,
    parameter_bytes,
    vision_weights,
    vocabulary_weights,
)
from remuda.protocol.errors import ConfigError

_GIB = 1 << 30
_MOST_RANKS = 128  # that a suggestion may ask for


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
    tp_size, groups = parallel.tensor_parallel_size, model.kv_groups
    stages, first = [], 0
    for stage, count in enumerate(parallel.layer_partition):
        last = first + count
        weights = _stage_weights(model, parallel, first, last)
        page = stage_page(groups, model.kv_shape(tp_size), block_size, first, last)
        stages.append(StageMemory(stage, first, last, weights, page.nbytes))
        first = last
    return stages


def _stage_weights(model: ModelConfig, parallel: ParallelConfig, first: int, last: int) -> dict[str, int]:
    tp, element = parallel.tensor_parallel_size, parameter_bytes(model)
    total: Counter[str] = Counter()
    for index in range(first, last):
        total.update(layer_bytes(model, index, layer_weights(model, index, tp, parallel.enable_expert_parallel)))
    is_first, is_last = first == 0, last == model.num_layers
    head = is_last and not (model.tie_word_embeddings and is_first)
    parts = {
        "vision tower": vision_weights(model) * element if is_first else 0,
        "embedding": vocabulary_weights(model, tp) * element if is_first else 0,
        "attention": total["attention"],
        "dense MLPs": total["dense"],
        "routed experts": total["routed_experts"],
        "shared experts": total["shared_expert"],
        "routers": total["router"],
        "norms": total["norms"] + (model.hidden_size * element if is_last else 0),
        "head": vocabulary_weights(model, tp) * element if head else 0,
    }
    return {part: nbytes for part, nbytes in parts.items() if nbytes}


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
    model: ModelConfig, bytes_per_rank: int, max_ranks: int, expert_parallel: bool = False
) -> list[tuple[int, int]]:
    """(TP, PP) sizes whose weights fill at most 0.9 of a rank's memory: fewest stages per TP, fewest ranks first."""
    found = []
    for tp in working_tensor_parallel_sizes(model, expert_parallel):
        for pp in range(1, min(model.num_layers, max_ranks // tp) + 1):
            parallel = ParallelConfig(tp, pp, expert_parallel, layer_partition=partition_layers(model, tp, pp))
            if max(stage.weight_bytes for stage in plan_memory(model, parallel, 16)) <= 0.9 * bytes_per_rank:
                found.append((tp, pp))
                break
    return sorted(found, key=lambda size: (size[0] * size[1], size[1]))
