"""Parameter counts and bytes of each part of a model on one rank: behind the memory table and the partitioner.

A test holds them against the parameters that the models themselves declare. The scales of FP8 checkpoints, under 0.1 %
of their weights, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from remuda.config.model import ModelConfig
from remuda.protocol.dtypes import VALUE_BYTES


@dataclass(frozen=True)
class LayerWeights:
    """Parameters of one decoder layer on one rank."""

    attention: int
    norms: int
    dense: int = 0
    router: int = 0
    shared_expert: int = 0
    routed_experts: int = 0
    active_experts: int = 0  # of routed_experts, what one token passes through, averaged over ranks

    @property
    def total(self) -> int:
        return self.attention + self.norms + self.dense + self.router + self.shared_expert + self.routed_experts

    @property
    def active(self) -> int:
        """Parameters that one token passes through: the proxy for the layer's time."""
        return self.total - self.routed_experts + self.active_experts


def parameter_bytes(model: ModelConfig, index: int | None = None, part: str = "") -> int:
    """Bytes of one parameter of a part of layer `index`, or of what lies beside the layers."""
    if index is not None and part in model.layers[index].fp8:
        return 1
    return VALUE_BYTES[model.dtype]


def layer_bytes(model: ModelConfig, index: int, weights: LayerWeights) -> dict[str, int]:
    """What each part of layer `index` takes in memory."""
    counts = {
        "attention": weights.attention,
        "norms": weights.norms,
        "dense": weights.dense,
        "router": weights.router,
        "shared_expert": weights.shared_expert,
        "routed_experts": weights.routed_experts,
    }
    return {part: count * parameter_bytes(model, index, part) for part, count in counts.items()}


def layer_weights(model: ModelConfig, index: int, tp_size: int = 1, expert_parallel: bool = False) -> LayerWeights:
    """Global layer `index` on one of `tp_size` ranks; with expert parallelism, on a rank with the most experts."""
    hidden, width = model.hidden_size, model.head_dim
    heads, kv_heads = model.num_heads // tp_size, max(1, model.num_kv_heads // tp_size)
    attention = hidden * width * (2 * heads + 2 * kv_heads)
    if not model.layers[index].moe:
        return LayerWeights(attention, 2 * hidden, dense=3 * hidden * model.intermediate_size // tp_size)
    assert model.moe is not None
    expert = 3 * hidden * model.moe.intermediate_size
    most = -(-model.moe.num_experts // tp_size)
    return LayerWeights(
        attention,
        2 * hidden,
        router=hidden * model.moe.num_experts,
        shared_expert=3 * hidden * model.moe.shared_intermediate_size // tp_size,
        routed_experts=most * expert if expert_parallel else model.moe.num_experts * expert // tp_size,
        active_experts=model.moe.top_k * expert // tp_size,
    )


def vocabulary_weights(model: ModelConfig, tp_size: int = 1) -> int:
    """The embedding's, or the head's, padded share of one rank."""
    return -(-model.vocab_size // tp_size) * model.hidden_size


def vision_weights(model: ModelConfig) -> int:
    """Tower, adapter and projector: whole on every TP rank of the first stage."""
    vision = model.vision
    if vision is None:
        return 0
    width, inner = vision.hidden_size, vision.intermediate_size
    patches = (vision.image_size // vision.patch_size) ** 2
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    embeddings = vision.num_channels * vision.patch_size**2 * width + (patches + 2) * width + 4 * width
    adapter = inner * vision.projector_input_dim + vision.projector_output_dim**2
    return vision.num_layers * layer + embeddings + adapter + vision.output_dim * model.hidden_size
