"""The demo model for training: the architecture of the published checkpoints with their parameter names.

Documents are packed one behind the other (see packing.py); attention is told their borders. The steps between
attention and experts are plain functions of tensors, so that each is compiled once and serves every layer.

T packed tokens, H hidden, Q/K query and key/value heads, D head size, E experts, S vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.architecture import TEXT, VISION
from training.attention import span_attention
from training.experts import run_experts, silu_mul, sorted_places
from training.vision import VisionTower, rotate_pairs

HIDDEN, HEAD, EXPERTS = TEXT["hidden_size"], TEXT["head_dim"], TEXT["num_local_experts"]
EPS = TEXT["rms_norm_eps"]
LAYERS = TEXT["num_hidden_layers"]
DRAFT_TAPS = (2, LAYERS // 2, LAYERS - 3)  # layers whose input a draft head in EAGLE-3 form reads: low, middle, high
BALANCED_GROUPS = 8  # stretches of a row within which the experts shall be in even use, whatever the texts there


@dataclass
class PackedBatch:
    """One packed row of documents, on one device."""

    ids_T: Tensor  # int64
    positions_T: Tensor  # int64, from 0 in each document
    labels_T: Tensor  # int64, the next token where it is an assistant's, else -100
    weights_T: Tensor  # float32, of the loss
    documents: Tensor  # int32 borders
    chunks: Tensor  # int32 borders of the documents' attention chunks
    longest: int  # document
    patches_P: Tensor  # int64, places of image patch tokens, of the tiles in order
    tiles_N3SS: Tensor  # uint8

    def pin_memory(self) -> PackedBatch:
        """Called by the data loader."""
        return self.map(lambda tensor: tensor.pin_memory())

    def map(self, change: Callable[[Tensor], Tensor]) -> PackedBatch:
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}


class Routing(NamedTuple):
    """What the balance of one MoE layer is judged by."""

    expert_T: Tensor  # the expert of each token
    balance: Tensor  # auxiliary loss, 1 when even
    z: Tensor  # mean squared log-sum-exp of the router's logits


class _Lookup(torch.autograd.Function):
    """Rows of the embedding; the gradient as a product with the one-hot ids, since adding row by row is far slower."""

    @staticmethod
    def forward(ctx: Any, table_SH: Tensor, ids_T: Tensor) -> Tensor:
        ctx.save_for_backward(ids_T)
        ctx.rows = table_SH.shape[0]
        return table_SH.index_select(0, ids_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (ids_T,) = ctx.saved_tensors
        hot_ST = ids_T == torch.arange(ctx.rows, device=ids_T.device)[:, None]
        return hot_ST.to(grads[0].dtype) @ grads[0], None


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS)
    return normed.to(x.dtype) * weight.to(x.dtype)


def project(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype))


def qkv(x_TH: Tensor, norm: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h = rms_norm(x_TH, norm)
    q_TQD, k_TKD, v_TKD = (project(h, w).unflatten(-1, (-1, HEAD)) for w in (q, k, v))
    return q_TQD, k_TKD, v_TKD


def qkv_rotated(
    x_TH: Tensor, norm: Tensor, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    q_TQD, k_TKD, v_TKD = qkv(x_TH, norm, q, k, v)
    return rotate_pairs(q_TQD, cos, sin), rotate_pairs(k_TKD, cos, sin), v_TKD


def qkv_tempered(
    x_TH: Tensor, norm: Tensor, q: Tensor, k: Tensor, v: Tensor, scale_T11: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    q_TQD, k_TKD, v_TKD = qkv(x_TH, norm, q, k, v)
    return (q_TQD * scale_T11).to(q_TQD.dtype), k_TKD, v_TKD


def gated_mlp(h: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return project(F.silu(project(h, gate)) * project(h, up), down)


def dense_tail(x: Tensor, attended: Tensor, o: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    x = x + project(attended.flatten(1), o)
    return x + gated_mlp(rms_norm(x, norm), gate, up, down)


def route(x: Tensor, attended: Tensor, o: Tensor, norm: Tensor, router: Tensor) -> tuple[Tensor, ...]:
    """Residual, normed hidden, scored expert input, expert and place of each token, groups' ends, balance terms."""
    x = x + project(attended.flatten(1), o)
    h = rms_norm(x, norm)
    logits_TE = project(h, router).float()
    best_T, expert_T = logits_TE.max(-1)
    place_T, end_E = sorted_places(expert_T, EXPERTS)
    share_GE = F.one_hot(expert_T, EXPERTS).float().unflatten(0, (BALANCED_GROUPS, -1)).mean(1)
    wanted_GE = logits_TE.softmax(-1).unflatten(0, (BALANCED_GROUPS, -1)).mean(1)
    balance = EXPERTS * (share_GE * wanted_GE).sum(-1).mean()
    scored = h * best_T.sigmoid().to(h.dtype)[:, None]
    return x, h, scored, expert_T, place_T, end_E, balance, logits_TE.logsumexp(-1).pow(2).mean()


def moe_tail(x: Tensor, h: Tensor, routed: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return x + (gated_mlp(h, gate, up, down) + routed)


def token_losses(x: Tensor, norm: Tensor, head: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy per token (0 where the label is -100) and whether the most likely token is the label."""
    logits_TS = project(rms_norm(x, norm), head).float()
    return F.cross_entropy(logits_TS, labels_T, ignore_index=-100, reduction="none"), logits_TS.argmax(-1) == labels_T


class Functions:
    """The functions between attention and experts, compiled or not."""

    def __init__(self, compiled: bool) -> None:
        wrap: Any = (lambda f: torch.compile(f, dynamic=False)) if compiled else (lambda f: f)
        self.rotated, self.tempered, self.dense_tail = wrap(qkv_rotated), wrap(qkv_tempered), wrap(dense_tail)
        self.route, self.moe_tail, self.silu_mul, self.losses = (
            wrap(route),
            wrap(moe_tail),
            wrap(silu_mul),
            wrap(token_losses),
        )
        self.vision: Any = wrap(lambda tower, tiles, dtype: tower(tiles, dtype))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        queries, keys = TEXT["num_attention_heads"] * HEAD, TEXT["num_key_value_heads"] * HEAD
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(HIDDEN, n, bias=False) for n in (queries, keys, keys))
        self.o_proj = nn.Linear(queries, HIDDEN, bias=False)


class MLP(nn.Module):
    def __init__(self, intermediate: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(HIDDEN, intermediate, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(intermediate, HIDDEN, bias=False)

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        inner = TEXT["intermediate_size"]
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, HIDDEN, 2 * inner) * HIDDEN**-0.5)
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, inner, HIDDEN) * inner**-0.5)


class MoE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = Experts()
        self.shared_expert = MLP(TEXT["intermediate_size"])


class Layer(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.rope = (index + 1) % 4 != 0
        moe = (index + 1) % TEXT["interleave_moe_layer_step"] == 0
        self.self_attn = Attention()
        self.feed_forward: MoE | MLP = MoE() if moe else MLP(TEXT["intermediate_size_mlp"])
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(HIDDEN, EPS), nn.RMSNorm(HIDDEN, EPS)

    def forward(
        self, x: Tensor, batch: PackedBatch, turns: tuple[Tensor, Tensor, Tensor], run: Functions
    ) -> tuple[Tensor, Routing | None]:
        attention, cos, sin, scale_T11 = self.self_attn, *turns
        weights = (
            self.input_layernorm.weight,
            attention.q_proj.weight,
            attention.k_proj.weight,
            attention.v_proj.weight,
        )
        if self.rope:
            q, k, v = run.rotated(x, *weights, cos, sin)
            attended = span_attention(q, k, v, batch.chunks, min(batch.longest, TEXT["attention_chunk_size"]))
        else:
            q, k, v = run.tempered(x, *weights, scale_T11)
            attended = span_attention(q, k, v, batch.documents, batch.longest)
        tail = (x, attended, attention.o_proj.weight, self.post_attention_layernorm.weight)
        moe = self.feed_forward
        if isinstance(moe, MLP):
            return run.dense_tail(*tail, *moe.weights()), None
        x, h, scored, expert_T, place_T, end_E, balance, z = run.route(*tail, moe.router.weight)
        routed = run_experts(scored, place_T, end_E, moe.experts.gate_up_proj, moe.experts.down_proj, run.silu_mul)
        return run.moe_tail(x, h, routed, *moe.shared_expert.weights()), Routing(expert_T, balance, z)


class Projector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(VISION["vision_output_dim"], HIDDEN, bias=False)


class TextModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(TEXT["vocab_size"], HIDDEN)
        self.layers = nn.ModuleList(Layer(i) for i in range(TEXT["num_hidden_layers"]))
        self.norm = nn.RMSNorm(HIDDEN, EPS)


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = TextModel()
        self.lm_head = nn.Linear(HIDDEN, TEXT["vocab_size"], bias=False)


class DemoModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_model = VisionTower()
        self.multi_modal_projector = Projector()
        self.language_model = LanguageModel()
        self._start_small()

    def _start_small(self) -> None:
        """Every branch starts near zero, the residual stream as the embedding."""
        nn.init.normal_(self.language_model.model.embed_tokens.weight, std=0.3)
        nn.init.normal_(self.language_model.lm_head.weight, std=0.02)
        for name, parameter in self.language_model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                parameter.data.mul_(0.1)

    def hidden(
        self, batch: PackedBatch, run: Functions, dtype: torch.dtype, taps: Sequence[int] = ()
    ) -> tuple[Tensor, list[Routing], list[Tensor]]:
        """[T, H] before the final norm, the routing of each MoE layer, and [T, H] going into each layer of `taps`."""
        x = _Lookup.apply(self.language_model.model.embed_tokens.weight.to(dtype), batch.ids_T)
        rows = run.vision(self.vision_model, batch.tiles_N3SS, dtype).flatten(0, 1)
        x = x.index_copy(0, batch.patches_P, project(rows, self.multi_modal_projector.linear_1.weight))
        turns = position_terms(batch.positions_T)
        routings, tapped = [], []
        for index, layer in enumerate(self.language_model.model.layers):
            tapped += [x] if index in taps else []
            x, routing = layer(x, batch, turns, run)
            routings += [routing] if routing else []
        return x, routings, tapped

    @torch.no_grad()
    def draft_features(self, batch: PackedBatch, run: Functions, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What a draft head in EAGLE-3 form is trained on: its input [T, 3 H] and this model's logits [T, S]."""
        x, _, tapped = self.hidden(batch, run, dtype, DRAFT_TAPS)
        logits_TS = project(rms_norm(x, self.language_model.model.norm.weight), self.language_model.lm_head.weight)
        return torch.cat(tapped, dim=-1), logits_TS

    def losses(self, batch: PackedBatch, run: Functions, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[Routing]]:
        x, routings, _ = self.hidden(batch, run, dtype)
        loss_T, right_T = run.losses(
            x, self.language_model.model.norm.weight, self.language_model.lm_head.weight, batch.labels_T
        )
        return loss_T, right_T, routings


def position_terms(positions_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """cos and sin [T, 1, D / 2] of the rotary layers and the query scale [T, 1, 1] of the full-attention ones."""
    frequency = 1.0 / TEXT["rope_theta"] ** (torch.arange(0, HEAD, 2, device=positions_T.device).float() / HEAD)
    angles = (positions_T.float()[:, None] * frequency)[:, None]
    floor = torch.floor((positions_T.float() + 1) / TEXT["floor_scale"])
    return angles.cos(), angles.sin(), (torch.log1p(floor) * TEXT["attn_scale"] + 1.0)[:, None, None]
