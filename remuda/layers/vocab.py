"""Vocabulary-parallel embedding and output head.

T tokens, S sampled rows, V this rank's (padded) ids, H hidden, N slots, L tokens of a sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remuda.kernels.table import KernelTable
from remuda.layers.base import BuildContext, Layer
from remuda.weights.parameter import Parameter, Slice

if TYPE_CHECKING:
    import torch


class _VocabParallel(Layer):
    """Rows [start, start + V) of a [vocab_size, H] tensor; V is equal on all ranks, rows past the vocabulary are 0."""

    def __init__(self, context: BuildContext, source: str) -> None:
        total, hidden = context.config.vocab_size, context.config.hidden_size
        self.size = -(-total // context.tp_size)
        self.start = context.tp_rank * self.size
        self.real = max(0, min(self.size, total - self.start))
        piece = Slice(
            source, (total, hidden), ((self.start, self.start + self.real), (0, hidden)), ((0, self.real), (0, hidden))
        )
        self.weight = Parameter((self.size, hidden), context.dtype, (piece,) if self.real else ())


class VocabParallelEmbedding(_VocabParallel):
    part = "embedding"
    used = 0.0  # a row of it

    def __init__(self, context: BuildContext, source: str) -> None:
        super().__init__(context, source)
        self.comm = context.comm
        self.parallel = context.tp_size > 1

    def pack(self, kernels: KernelTable) -> None:
        self.weight_VH = self.weight.take()

    def bind_own(self, kernels: KernelTable) -> None:
        self.embedding, self.embed_tokens = kernels.embedding, kernels.embed_tokens

    def __call__(self, ids_T: torch.Tensor) -> torch.Tensor:
        """Rows of the whole vocabulary [T, H], on every rank. A new tensor."""
        if not self.parallel:
            return self.embedding(ids_T, self.weight_VH)
        local_T = ids_T - self.start
        foreign_T = (local_T < 0) | (local_T >= self.real)
        rows_TH = self.embedding(local_T.masked_fill_(foreign_T, 0), self.weight_VH)
        return self.comm.all_reduce_(rows_TH.masked_fill_(foreign_T[:, None], 0))

    def of_buffer(self, tokens_NL: torch.Tensor, slots_T: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
        """The same for ids that a token buffer holds at [slot, position]."""
        rows_TH = self.embed_tokens(tokens_NL, slots_T, positions_T, self.weight_VH, self.start, self.real)
        return self.comm.all_reduce_(rows_TH) if self.parallel else rows_TH


class ParallelHead(_VocabParallel):
    """Logits of this rank's ids."""

    part = "head"

    def pack(self, kernels: KernelTable) -> None:
        self.linear = kernels.make_linear(self.weight.take())

    def bind_own(self, kernels: KernelTable) -> None:
        self.linear, self.head_keys = kernels.repack_linear(self.linear), kernels.head_keys

    def keys(self, x_SH: torch.Tensor) -> torch.Tensor:
        """int64 [S]: each row's largest logit and its id, see `kernels/head/torch.py`."""
        return self.head_keys(self.linear, x_SH, self.real, self.start)

    def __call__(self, x_SH: torch.Tensor) -> torch.Tensor:
        """float32 [S, V]; ids past the vocabulary are at -inf."""
        logits_SV = self.linear.to_float32(x_SH)
        if self.real < self.size:
            logits_SV[:, self.real :] = float("-inf")
        return logits_SV


class TiedHead(ParallelHead):
    """A head that shares the embedding's rows on this rank (tie_word_embeddings, one stage): nothing more to load."""

    def __init__(self, context: BuildContext, embedding: VocabParallelEmbedding) -> None:
        self.size, self.start, self.real = embedding.size, embedding.start, embedding.real
        self._embedding = embedding

    def pack(self, kernels: KernelTable) -> None:
        self.linear = kernels.make_linear(self._embedding.weight_VH)
