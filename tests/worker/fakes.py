"""A tiny model whose next token depends on every token it may see, through the pages; and the same without pages."""

from __future__ import annotations

import queue
from collections.abc import Sequence

import torch

from remuda.config.engine import CacheConfig, EngineConfig, ParallelConfig, SchedulerConfig
from remuda.config.model import LayerConfig, ModelConfig
from remuda.kv.groups import kv_places
from remuda.kv.specs import AnyAttention, ChunkedLocal, FullAttention
from remuda.layers.base import BuildContext
from remuda.layers.batch import ForwardBatch
from remuda.models.interfaces import Model, SupportsPP
from remuda.parallel.p2p import Tokens
from remuda.weights.loader import LoadReport, Progress

HIDDEN, HEADS, HEAD_DIM = 8, 2, 4  # HEADS * HEAD_DIM == HIDDEN: a page's cell holds one hidden vector


def model_config(layers: str = "CCCF", chunk: int = 10, vocab_size: int = 50) -> ModelConfig:
    """C: chunked attention, F: full."""
    kinds: dict[str, AnyAttention] = {"C": ChunkedLocal(chunk), "F": FullAttention()}
    return ModelConfig(
        path="", architecture="Fake", dtype="float32", checkpoint_dtype="float32", hidden_size=HIDDEN,
        num_heads=HEADS, num_kv_heads=HEADS, head_dim=HEAD_DIM, intermediate_size=8, vocab_size=vocab_size,
        max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, rope_interleaved=True,
        layers=tuple(LayerConfig(kinds[kind], True, False, False, False) for kind in layers),
        temperature_floor=1.0, temperature_scale=0.0, tie_word_embeddings=False, moe=None, vision=None,
        image_tokens=None, quant=None, bos_token_id=None, eos_token_ids=(),
    )  # fmt: skip


def engine_config(model: ModelConfig, stages: Sequence[int] = (), max_num_seqs: int = 6) -> EngineConfig:
    partition = tuple(stages) or (model.num_layers,)
    return EngineConfig(
        model=model,
        parallel=ParallelConfig(pipeline_parallel_size=len(partition), layer_partition=partition),
        cache=CacheConfig(block_size=4, num_pages_override=400),
        scheduler=SchedulerConfig(max_num_seqs=max_num_seqs, max_num_batched_tokens=64, max_model_len=100),
    )


def _weights(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    make = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return make(vocab_size, HIDDEN), make(64, HIDDEN, HIDDEN), make(HIDDEN, vocab_size)


def _mix(weight_HH: torch.Tensor, own_H: torch.Tensor, seen_NH: torch.Tensor) -> torch.Tensor:
    """Order matters: later cells weigh more."""
    share_N = torch.arange(1, len(seen_NH) + 1, dtype=torch.float32)
    return torch.tanh(own_H + (share_N[:, None] * seen_NH).sum(0) / share_N.sum() @ weight_HH)


class FakeModel(Model, SupportsPP):
    def __init__(self, context: BuildContext) -> None:
        super().__init__(context)
        self._embedding, self._mixing, self._head = _weights(context.config.vocab_size)
        self._groups = context.config.kv_groups

    def load(self, progress: Progress | None = None, load_format: str = "auto") -> LoadReport:
        return LoadReport(0, 0)

    def embed(self, ids_T: torch.Tensor) -> torch.Tensor:
        return self._embedding[ids_T].clone()

    def run_layers(self, hidden_TH: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        starts = batch.query_start_S1.tolist()
        stage = self.context.topology
        places = kv_places(self._groups, stage.first_layer, stage.last_layer)
        for layer, (group, depth) in zip(stage.layers, places, strict=True):
            k, v = batch.kv[depth]
            page_T, offset_T = batch.places_GT[group] // batch.block_size, batch.places_GT[group] % batch.block_size
            k[page_T, :, offset_T] = hidden_TH.view(-1, HEADS, HEAD_DIM)
            v[page_T, :, offset_T] = -hidden_TH.view(-1, HEADS, HEAD_DIM)
            spec = self._groups[group].spec
            result = torch.empty_like(hidden_TH)
            for row in range(len(starts) - 1):
                for token in range(starts[row], starts[row + 1]):
                    position = int(batch.positions_T[token])
                    first = spec.first_visible(position)
                    cells = [
                        -v[int(batch.tables_GSB[group, row, p // batch.block_size]), :, p % batch.block_size]
                        for p in range(first, position + 1)
                    ]
                    seen_NH = torch.stack(cells).reshape(-1, HIDDEN)
                    result[token] = _mix(self._mixing[layer], hidden_TH[token], seen_NH)
            hidden_TH = result
        return hidden_TH

    def logits(self, hidden_SH: torch.Tensor) -> torch.Tensor:
        start, stop = self.vocab_shard
        return (hidden_SH @ self._head)[:, start:stop]

    @property
    def vocab_shard(self) -> tuple[int, int]:
        share = self.context.config.vocab_size // self.context.tp_size
        return self.context.tp_rank * share, (self.context.tp_rank + 1) * share


def brute_force_logits(config: ModelConfig, tokens: Sequence[int]) -> torch.Tensor:
    """Logits [T, V] at every position, from the whole sequence at once, without a cache."""
    embedding, mixing, head = _weights(config.vocab_size)
    hidden_TH = embedding[torch.tensor(list(tokens))]
    for layer in range(config.num_layers):
        spec = config.layers[layer].attention
        rows = []
        for position in range(len(tokens)):
            first = spec.first_visible(position)
            rows.append(_mix(mixing[layer], hidden_TH[position], hidden_TH[first : position + 1]))
        hidden_TH = torch.stack(rows)
    return hidden_TH @ head


class QueueLink:
    """A HostLink among threads: one queue per boundary and one for the tokens."""

    def __init__(self, before: queue.Queue | None, after: queue.Queue | None, tokens: queue.Queue) -> None:
        self._before, self._after, self._tokens = before, after, tokens
        self.posted: list[tuple[int, int]] = []  # (count, step) of hidden states, in order of announcement
        self.posted_tokens: list[tuple[int, int]] = []

    def post_hidden(self, tokens: int, step: int) -> None:
        self.posted.append((tokens, step))

    def receive_hidden(self, step: int) -> torch.Tensor:
        assert self._before is not None
        tokens, posted_step = self.posted.pop(0)
        sent_step, x_TH = self._before.get(timeout=20)
        assert (posted_step, sent_step, len(x_TH)) == (step, step, tokens)
        return x_TH

    def has_arrived(self) -> bool:
        return self._before is not None and bool(self.posted) and not self._before.empty()

    def wrap(self, x_TH: torch.Tensor) -> torch.Tensor:
        return x_TH

    def send_hidden(self, parcel: torch.Tensor, step: int) -> None:
        assert self._after is not None
        self._after.put((step, parcel))

    def post_tokens(self, count: int, step: int) -> None:
        self.posted_tokens.append((count, step))

    def receive_tokens(self, step: int) -> Tokens:
        count, posted_step = self.posted_tokens.pop(0)
        sent_step, tokens_S = self._tokens.get(timeout=20)
        assert (posted_step, sent_step, len(tokens_S)) == (step, step, count)
        return tokens_S

    def send_tokens(self, tokens_S: Tokens, step: int) -> None:
        self._tokens.put((step, tokens_S))

    def close(self) -> None:
        return
