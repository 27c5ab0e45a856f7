"""What a model is to the worker, and what it may support beyond text on one stage.

T tokens, S sampled rows, H hidden, V ids of this rank's vocabulary shard, N image tiles, R image rows; a token buffer
has N slots of L positions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from remuda.kernels.select import kernel_table
from remuda.layers.base import BuildContext, Layer
from remuda.layers.batch import ForwardBatch

if TYPE_CHECKING:
    import torch

    from remuda.kernels.table import KernelTable
    from remuda.weights.loader import LoadReport, Progress
    from remuda.weights.parameter import Parameter


class Model(Layer):
    """One rank's share of a model. Building it allocates nothing; load() makes it run. Call under inference_mode."""

    layers: Sequence[Layer]  # the stage's decoder layers, in order

    def __init__(self, context: BuildContext) -> None:
        self.context = context

    @abstractmethod
    def embed(self, ids_T: torch.Tensor) -> torch.Tensor:
        """First stage: token ids (int64) -> hidden_TH, a new tensor."""

    def embed_of_buffer(
        self, tokens_NL: torch.Tensor, slots_T: torch.Tensor, positions_T: torch.Tensor
    ) -> torch.Tensor:
        """First stage: the same of the ids at tokens_NL[slot, position]."""
        return self.embed(tokens_NL[slots_T, positions_T])

    @abstractmethod
    def run_layers(self, hidden_TH: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """This stage's layers -> hidden_TH with the residual added. May overwrite its input."""

    @abstractmethod
    def logits(self, hidden_SH: torch.Tensor) -> torch.Tensor:
        """Last stage: final norm and head of chosen rows -> float32 [S, V]; ids past the vocabulary are at -inf."""

    def greedy_keys(self, hidden_SH: torch.Tensor) -> torch.Tensor:
        """Last stage: each row's largest logit of this rank and its id, as an int64 key (`kernels/head/torch.py`)."""
        from remuda.kernels.head.torch import argmax_keys

        return argmax_keys(self.logits(hidden_SH), self.vocab_shard[0])

    @property
    @abstractmethod
    def vocab_shard(self) -> tuple[int, int]:
        """[start, stop) of the ids that logits() covers on this rank; equal in size on all, so stop may exceed them."""

    @property
    def weight_bytes(self) -> int:
        """What this rank's parameters take in memory."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def load(self, progress: Progress | None = None, load_format: str = "auto") -> LoadReport:
        """Read this rank's bytes of the checkpoint at config.path, or make some up (`dummy`), and get ready to run.

        `bind` may exchange the kernels later: between two steps, on all ranks at the same step.
        """
        from remuda.weights.dummy import make_parameters  # imports torch, which declaring a model does not need
        from remuda.weights.loader import load_parameters

        config, device = self.context.config, self.context.device
        packing = Packing(self, kernel_table(device, config.dtype))
        if load_format == "dummy":
            report = make_parameters(self.parameters(), device, config.dtype, progress, packing.filled)
        else:
            report = load_parameters(self.parameters(), config.path, device, progress, packing.filled)
        packing.finish()
        return report


class Packing:
    """Packs what lies right below a model (a decoder layer, the head) as soon as its last parameter has come, so that
    no more than one is in memory in two forms."""

    def __init__(self, model: Model, kernels: KernelTable) -> None:
        self._model = model
        self._kernels = kernels
        self._missing = {part: len(part.parameters()) for part in model.sublayers()}
        self._part_of = {parameter: part for part in self._missing for parameter in part.parameters()}

    def filled(self, parameter: Parameter) -> None:
        part = self._part_of[parameter]
        self._missing[part] -= 1
        if not self._missing[part]:
            del self._missing[part]
            self._pack(part)

    def finish(self) -> None:
        """All parameters have come: what has none of its own, and may share others', is packed now."""
        for part in self._missing:
            self._pack(part)
        self._model.bind(self._kernels)

    def _pack(self, part: Layer) -> None:
        for layer in part.walk():
            layer.pack(self._kernels)


class SupportsPP:
    """A model that builds only the layers of its stage, so that hidden_TH alone crosses the stages' boundary."""


class SupportsImages:
    """A model whose first stage turns image tiles into rows that replace the embeddings of patch tokens."""

    @abstractmethod
    def encode_images(self, tiles_N3SS: torch.Tensor) -> torch.Tensor:
        """uint8 tiles -> rows [N * tokens_per_tile, H]. Collective: all TP ranks of the first stage pass all tiles."""
