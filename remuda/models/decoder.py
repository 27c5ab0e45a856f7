"""The decoder that Llama-like architectures share: pre-norm layers on a residual stream, one stage of it.

T tokens, S sampled rows, H hidden, N slots, L tokens of a sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remuda.kv.groups import kv_places
from remuda.layers.attention import Attention
from remuda.layers.base import BuildContext, Layer
from remuda.layers.batch import ForwardBatch
from remuda.layers.mlp import MLP
from remuda.layers.norm import RMSNorm
from remuda.layers.rotary import RotaryAngles
from remuda.layers.vocab import ParallelHead, TiedHead, VocabParallelEmbedding
from remuda.models.interfaces import Model, SupportsPP

if TYPE_CHECKING:
    import torch


class DecoderLayer(Layer):
    """Attention and feed-forward. Each gives this rank's partial sum; whoever normalizes next reduces and adds it."""

    def __init__(self, context: BuildContext, prefix: str, attention: Layer, feed_forward: Layer) -> None:
        config = context.config
        self.input_norm = RMSNorm(context, f"{prefix}.input_layernorm", config.hidden_size, config.rms_norm_eps)
        self.attention = attention
        self.post_norm = RMSNorm(context, f"{prefix}.post_attention_layernorm", config.hidden_size, config.rms_norm_eps)
        self.feed_forward = feed_forward

    def __call__(
        self,
        partial_TH: torch.Tensor | None,
        residual_TH: torch.Tensor,
        batch: ForwardBatch,
        cos_sin_TD: torch.Tensor,
        temperature_T: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(what the layer before left to add, residual) -> the same pair for the layer after."""
        if partial_TH is None:
            x_TH = self.input_norm(residual_TH)
        else:
            x_TH, residual_TH = self.input_norm.reduce_add(partial_TH, residual_TH)
        x_TH = self.attention(x_TH, batch, cos_sin_TD, temperature_T)
        x_TH, residual_TH = self.post_norm.reduce_add(x_TH, residual_TH)
        return self.feed_forward(x_TH), residual_TH


class Decoder(Model, SupportsPP):
    """One stage: the embedding if it is the first, its layers, the norm and head if it is the last.

    What it is made of are Llama's parts in Llama's places; an architecture overrides what differs.
    """

    module = "model"  # where the checkpoint keeps it
    head_module = "lm_head"

    def __init__(self, context: BuildContext) -> None:
        super().__init__(context)
        config, topology, self.comm = context.config, context.topology, context.comm
        embeddings, shared = f"{self.module}.embed_tokens.weight", config.tie_word_embeddings
        if topology.is_first_stage:
            self.embed_tokens = VocabParallelEmbedding(context, embeddings)
        places = kv_places(config.kv_groups, topology.first_layer, topology.last_layer)
        self.layers = [
            self.make_layer(context, f"{self.module}.layers.{index}", index, place)
            for index, place in zip(topology.layers, places, strict=True)
        ]
        if topology.is_last_stage:
            self.norm = RMSNorm(context, f"{self.module}.norm", config.hidden_size, config.rms_norm_eps)
            if shared and topology.is_first_stage:
                self.head: ParallelHead = TiedHead(context, self.embed_tokens)
            else:
                self.head = ParallelHead(context, embeddings if shared else f"{self.head_module}.weight")
        self.angles = self.make_angles(context)

    def make_layer(self, context: BuildContext, prefix: str, index: int, place: tuple[int, int]) -> DecoderLayer:
        """Global layer `index`, whose keys and values live at `place`: (KV group, depth in this stage)."""
        attention = self.make_attention(context, f"{prefix}.self_attn", index, place)
        return DecoderLayer(context, prefix, attention, self.make_feed_forward(context, prefix, index))

    def make_attention(self, context: BuildContext, prefix: str, index: int, place: tuple[int, int]) -> Layer:
        return Attention(context, prefix, index, *place)

    def make_feed_forward(self, context: BuildContext, prefix: str, index: int) -> Layer:
        """`prefix` is the layer's."""
        return MLP(context, f"{prefix}.mlp", context.config.intermediate_size)

    def make_angles(self, context: BuildContext) -> Layer:
        """What a step's positions mean to every layer's attention, computed once a step: (angles, temperature)."""
        config = context.config
        tuned = any(config.layers[index].temperature_tuning for index in context.topology.layers)
        tuning = (config.temperature_floor, config.temperature_scale) if tuned else None
        return RotaryAngles(context, config.head_dim, config.rope_theta, config.rope_scaling, tuning)

    def embed(self, ids_T: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(ids_T)

    def embed_of_buffer(
        self, tokens_NL: torch.Tensor, slots_T: torch.Tensor, positions_T: torch.Tensor
    ) -> torch.Tensor:
        return self.embed_tokens.of_buffer(tokens_NL, slots_T, positions_T)

    def run_layers(self, hidden_TH: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        cos_sin_TD, temperature_T = self.angles(batch.positions_T)
        partial_TH = None
        for layer in self.layers:
            partial_TH, hidden_TH = layer(partial_TH, hidden_TH, batch, cos_sin_TD, temperature_T)
        return hidden_TH if partial_TH is None else self.comm.all_reduce_add(partial_TH, hidden_TH)

    def logits(self, hidden_SH: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(hidden_SH))

    def greedy_keys(self, hidden_SH: torch.Tensor) -> torch.Tensor:
        return self.head.keys(self.norm(hidden_SH))

    @property
    def vocab_shard(self) -> tuple[int, int]:
        return self.head.start, self.head.start + self.head.size
