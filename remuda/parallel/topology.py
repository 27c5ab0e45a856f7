"""Who is where: pure arithmetic over (TP, PP, EP) ranks, no torch. Always passed as an argument, never a global."""

from __future__ import annotations

from dataclasses import dataclass

from remuda.config.engine import ParallelConfig
from remuda.protocol.errors import ConfigError


@dataclass(frozen=True)
class Topology:
    """The place of one rank. Ranks count TP first: rank = stage * tp_size + tp_rank."""

    tp_size: int
    pp_size: int
    tp_rank: int
    stage: int
    first_layer: int
    last_layer: int  # exclusive
    num_layers: int
    expert_parallel: bool = False

    @property
    def rank(self) -> int:
        return self.stage * self.tp_size + self.tp_rank

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size

    @property
    def is_first_stage(self) -> bool:
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        return self.stage == self.pp_size - 1

    @property
    def layers(self) -> range:
        return range(self.first_layer, self.last_layer)

    @property
    def is_driver(self) -> bool:
        """The rank that samples and answers: TP rank 0 of the last stage."""
        return self.is_last_stage and self.tp_rank == 0

    @property
    def receives_from(self) -> int:
        """The one rank that sends to this one in the pipeline: of the stage before, or, on the first, the driver."""
        return self.rank - self.tp_size if self.stage else self.stage_ranks(self.pp_size - 1)[0]

    @property
    def sends_to(self) -> list[int]:
        """The next stage's rank; of the driver, every rank of the first stage; of others on the last stage, nobody."""
        if self.is_driver:
            return list(self.stage_ranks(0))
        return [] if self.is_last_stage else [self.rank + self.tp_size]

    def stage_ranks(self, stage: int) -> range:
        return range(stage * self.tp_size, (stage + 1) * self.tp_size)


def topology_of(rank: int, parallel: ParallelConfig) -> Topology:
    """The topology of `rank` in a resolved layout."""
    tp, pp = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    if not 0 <= rank < tp * pp:
        raise ConfigError(f"rank {rank} is outside the world of {tp} x {pp}")
    stage, tp_rank = divmod(rank, tp)
    start = sum(parallel.layer_partition[:stage])
    return Topology(
        tp_size=tp, pp_size=pp, tp_rank=tp_rank, stage=stage,
        first_layer=start, last_layer=start + parallel.layer_partition[stage],
        num_layers=sum(parallel.layer_partition), expert_parallel=parallel.enable_expert_parallel,
    )  # fmt: skip


def node_of(rank: int, parallel: ParallelConfig) -> int:
    """Ranks are dealt to nodes in order; world_size must be a multiple of nnodes."""
    return rank // (parallel.world_size // parallel.nnodes)


def node_ranks(node: int, parallel: ParallelConfig) -> range:
    per_node = parallel.world_size // parallel.nnodes
    return range(node * per_node, (node + 1) * per_node)


def expert_range(num_experts: int, tp_size: int, tp_rank: int) -> range:
    """Experts that a rank holds whole under expert parallelism: contiguous, counts differ by at most one."""
    return range(num_experts * tp_rank // tp_size, num_experts * (tp_rank + 1) // tp_size)
