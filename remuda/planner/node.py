"""What the ranks of this node need of its memory, and may have of it, told before anything is loaded."""

from __future__ import annotations

from remuda.config.engine import CacheConfig, ParallelConfig
from remuda.config.model import ModelConfig
from remuda.kv.groups import SequencePages
from remuda.planner.host import kv_bytes_of_rank
from remuda.planner.memory import check_weights_fit, plan_memory
from remuda.protocol.errors import ConfigError

_CERTAINTY = 0.9  # free memory moves while we start


class NodeMemory:
    """`free_bytes` are free now, for all its ranks: `shared` by them, or in equal parts on devices of their own, of
    which they may use all."""

    def __init__(
        self, model: ModelConfig, parallel: ParallelConfig, cache: CacheConfig, free_bytes: int, shared: bool = True
    ) -> None:
        tp_size, stages = parallel.tensor_parallel_size, parallel.pipeline_parallel_size // parallel.nnodes
        everywhere = plan_memory(model, parallel, cache.block_size)
        here = everywhere[parallel.node_rank * stages :][:stages]
        self._model = model
        self._parallel = parallel
        self._cache = cache
        self._free_bytes = free_bytes
        self._shared = shared
        self._ranks = len(here) * tp_size
        self._weight_bytes = sum(stage.weight_bytes for stage in here) * tp_size
        self._page_bytes = sum(stage.page_bytes for stage in here) * tp_size  # of one page on every rank
        self._largest_page = max(stage.page_bytes for stage in everywhere)  # decides how many pages every rank has

    def check_weights(self) -> None:
        """Raise ConfigError, with what would fit, if the weights alone exceed what is free."""
        if self._weight_bytes > self._free_bytes or not self._shared:
            check_weights_fit(self._model, self._parallel, self._free_bytes // self._ranks, self._cache.block_size)

    def affordable_pages(self) -> int:
        """KV pages that a rank will have: as told, or by a share of what the weights will leave."""
        cache = self._cache
        if cache.num_pages_override is not None:
            return cache.num_pages_override
        if cache.kv_cache_memory_bytes is not None:
            return cache.kv_cache_memory_bytes // self._largest_page
        left = (self._free_bytes - self._weight_bytes) * _CERTAINTY
        utilization = cache.memory_utilization if self._shared else 1.0  # of devices it is taken into account already
        return kv_bytes_of_rank(left, utilization, self._ranks) // self._largest_page

    def longest_sequence(self, step_tokens: int) -> int:
        """Tokens, up to the model's length, of the longest sequence that the KV cache will hold; whole pages.

        Raises:
            ConfigError: not even one page's worth fits.
        """
        pages, size = self.affordable_pages(), self._cache.block_size
        limit = self._model.max_position_embeddings
        needs = SequencePages(self._model.kv_groups, size, step_tokens)
        longest = needs.longest(pages - 1, limit)  # page 0 is nobody's
        if not longest:
            raise ConfigError(
                f"the KV cache has room for {pages} pages of {size} tokens, not enough for one sequence: raise "
                "--kv-cache-memory-bytes or --gpu-memory-utilization"
            )
        return longest

    def check_cache(self, most_useful_pages: int) -> None:
        """Raise ConfigError if a KV cache of the size that was asked for, or of what is useful of it, exceeds what is
        free.

        Its pages become resident only when they are written: without this check the kernel would end a rank days later.
        """
        cache = self._cache
        if cache.kv_cache_memory_bytes is None and cache.num_pages_override is None:
            return
        flag, pages = "--num-gpu-blocks-override", self.affordable_pages()
        if cache.num_pages_override is None:
            flag, pages = "--kv-cache-memory-bytes", min(pages, most_useful_pages)
        if (needed := pages * self._page_bytes) > self._free_bytes:
            raise ConfigError(
                f"{flag}: the KV caches of this machine's ranks would take {needed / 2**30:,.1f} GiB, "
                f"but {self._free_bytes / 2**30:,.1f} GiB are free"
            )
