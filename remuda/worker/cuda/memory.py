"""What a rank may give to its KV cache on a GPU: what the weights and the largest step leave free.

The step is run once and its memory measured. Before there are weights, `planner/gpus.py` estimates it.
"""

from __future__ import annotations

from functools import partial

import torch

from remuda.config.engine import EngineConfig
from remuda.layers.batch import ForwardBatch
from remuda.models.interfaces import Model, SupportsImages
from remuda.parallel.collectives import Communicator
from remuda.parallel.topology import Topology
from remuda.worker.cuda.device import Device
from remuda.worker.kv_pool import KVPool
from remuda.worker.sampling.device import draw

_CONTEXT_BYTES = 1 << 30  # captured graphs, workspaces of libraries, buffers of NCCL that come with use
_FRAGMENTS = 1.1  # of the largest step, for memory that torch holds in pieces too small to be used
_PAGES = 2  # of the pool that the measured step writes


def kv_bytes_of_gpu(device: Device, config: EngineConfig, step_bytes: int) -> int:
    """The weights are loaded; `--gpu-memory-utilization` leaves a share of the whole card to others."""
    free, total = device.free_bytes()
    usable = free - int(total * (1.0 - config.cache.memory_utilization))
    return max(0, usable - int(step_bytes * _FRAGMENTS) - _CONTEXT_BYTES)


class LargestStep:
    """A step of one prompt of as many tokens as any has, after which as many rows as any has are drawn.

    Collective over the TP ranks; other stages are not asked, their hidden states are made up.
    """

    def __init__(
        self,
        model: Model,
        tp: Communicator,
        config: EngineConfig,
        topology: Topology,
        dtype: torch.dtype,
        device: Device,
    ) -> None:
        self._model = model
        self._tp = tp
        self._config = config
        self._topology = topology
        self._dtype = dtype
        self._device = device

    def measure(self) -> int:
        """Bytes that it takes at once, beside the weights and the pages that it writes."""
        nbytes = self._device.peak_bytes(partial(self._run, self._batch()))
        self._device.trim()
        return nbytes

    def _run(self, batch: ForwardBatch) -> None:
        hidden_TH = self._hidden(batch.positions_T)
        hidden_TH = self._model.run_layers(hidden_TH, batch)
        if not self._topology.is_last_stage:
            return
        rows = min(self._config.scheduler.max_num_seqs, len(hidden_TH))
        logits_SV = self._model.logits(hidden_TH[:rows])
        if self._tp.size > 1:
            logits_SV = self._tp.all_gather(logits_SV).transpose(0, 1).flatten(1)
        one_S = torch.ones(rows, dtype=torch.float64, device=logits_SV.device)
        draw(logits_SV.clone(), one_S, torch.full_like(one_S, 50, dtype=torch.int64), one_S, one_S - 1.0, one_S / 2)

    def _hidden(self, ids_T: torch.Tensor) -> torch.Tensor:
        model, vision = self._config.model, self._config.model.vision
        if not self._topology.is_first_stage:
            shape = (len(ids_T), model.hidden_size)
            return torch.randn(shape, device=ids_T.device).to(self._dtype)
        if vision is not None and isinstance(self._model, SupportsImages):
            size = (vision.max_tiles, vision.num_channels, vision.image_size, vision.image_size)
            self._model.encode_images(torch.zeros(size, dtype=torch.uint8, device=ids_T.device))
        return self._model.embed(ids_T % model.vocab_size)

    def _batch(self) -> ForwardBatch:
        config, where = self._config, self._device.torch_device
        size, tokens = config.cache.block_size, config.scheduler.max_num_batched_tokens
        groups = len(config.model.kv_groups)
        pool = KVPool(
            config.model, config.cache, self._topology, _PAGES,
            lambda shape, dtype: torch.zeros(shape, dtype=dtype, device=where),
        )  # fmt: skip
        positions_T = torch.arange(tokens, device=where)
        return ForwardBatch(
            positions_T=positions_T,
            query_start_S1=torch.tensor([0, tokens], dtype=torch.int32, device=where),
            context_S=torch.tensor([tokens], dtype=torch.int32, device=where),
            tables_GSB=torch.zeros((groups, 1, -(-tokens // size)), dtype=torch.int32, device=where),
            places_GT=(positions_T % (size * _PAGES)).expand(groups, -1).contiguous(),
            kv=pool.kv,
            max_query=tokens,
            num_decodes=0,
            block_size=size,
        )
