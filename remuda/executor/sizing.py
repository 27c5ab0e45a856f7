"""How many KV pages a replica gets: what the poorest rank affords, but no more than could ever be used."""

from __future__ import annotations

from remuda.config.engine import EngineConfig
from remuda.kv.groups import SequencePages
from remuda.parallel.topology import node_of
from remuda.protocol.errors import ConfigError
from remuda.protocol.step import MemoryReport

_MOST_RANKS = 128  # that a suggestion may ask for


def most_useful_pages(config: EngineConfig) -> int:
    """Every slot at max_model_len, what one step writes on top of that, and the null page."""
    scheduler, groups, block_size = config.scheduler, config.model.kv_groups, config.cache.block_size
    step = len(groups) * -(-scheduler.max_num_batched_tokens // block_size)
    return scheduler.max_num_seqs * SequencePages(groups, block_size).of(scheduler.max_model_len) + step + 1


def agree_on_pages(config: EngineConfig, reports: list[MemoryReport]) -> int:
    """Pages for every rank, the null page included. Raises ConfigError with a table if one sequence does not fit."""
    needed = SequencePages(config.model.kv_groups, config.cache.block_size).of(config.scheduler.max_model_len) + 1
    if config.cache.num_pages_override is not None:
        pages = config.cache.num_pages_override
    else:
        affordable = min(report.kv_bytes_available // report.page_bytes for report in reports)
        pages = min(affordable, most_useful_pages(config))
    if pages < needed:
        raise ConfigError(_does_not_fit(config, reports, pages, needed))
    return pages


def _does_not_fit(config: EngineConfig, reports: list[MemoryReport], pages: int, needed: int) -> str:
    mib = 1 << 20
    lines = [
        f"the KV cache has room for {max(0, pages)} pages, but one sequence of {config.scheduler.max_model_len} tokens "
        f"needs {needed}",
        f"{'rank':>6} {'node':>5} {'weights MiB':>12} {'KV MiB':>11} {'page KiB':>9} {'pages':>9} {'needed MiB':>11}",
    ]
    for report in reports:
        lines.append(
            f"{report.rank:>6} {node_of(report.rank, config.parallel):>5} {report.weight_bytes / mib:>12.1f} "
            f"{report.kv_bytes_available / mib:>11.1f} {report.page_bytes / 1024:>9.1f} "
            f"{report.kv_bytes_available // report.page_bytes:>9} {needed * report.page_bytes / mib:>11.1f}"
        )
    if config.cache.kv_cache_memory_bytes is None and config.cache.num_pages_override is None:
        lines.append(_layouts(config, reports, needed))
    lines.append(
        "Lower --max-model-len, raise --kv-cache-memory-bytes or the memory utilization, or use more "
        "tensor-parallel or pipeline-parallel ranks"
    )
    return "\n".join(lines)


def _layouts(config: EngineConfig, reports: list[MemoryReport], pages: int) -> str:
    """Which sizes would have room for the weights and so many pages, on ranks as poor as the poorest of these."""
    room = min(report.weight_bytes + report.kv_bytes_available for report in reports)
    from remuda.planner.memory import layouts_that_fit  # reads every model: not while all is well

    fitting = layouts_that_fit(
        config.model, room, _MOST_RANKS, config.parallel.enable_expert_parallel, pages, config.cache.block_size
    )
    sizes = ", ".join(f"{tp} x {pp}" for tp, pp in fitting) or f"none on up to {_MOST_RANKS} ranks"
    return f"Sizes (tensor x pipeline parallel) that would fit ranks of {room / 2**30:.1f} GiB: {sizes}"
