"""Random weights that behave: unit-sized activations, clear routing and clear greedy choices.

A tensor depends only on (seed, name, shape) and on arithmetic that is exact everywhere, so every machine makes the same
checkpoint. Routing has a margin because each token's embedding leans towards one of E directions, and every router
looks along these directions: rounding to bfloat16 rarely changes the chosen expert.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from remuda.tiny.tokenizer import ORDINARY_TOKENS

Named = Iterator[tuple[str, torch.Tensor]]
_CLUSTER = 12.0  # length of the direction in an embedding, whose noise has length sqrt(hidden)
_FP8_MAX = 448.0


def noise(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform, zero mean, unit variance, float32."""
    key = hashlib.sha256(f"{seed} {name} {shape}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little")))
    return (generator.random(shape, dtype=np.float32) - np.float32(0.5)) * np.float32(math.sqrt(12.0))


class Maker:
    """Makes the tensors of one checkpoint, one at a time, in bfloat16."""

    def __init__(self, seed: int, hidden: int, vocab: int, experts: int, end_of_turn: int) -> None:
        self.seed, self.hidden, self.vocab, self.experts, self.end_of_turn = seed, hidden, vocab, experts, end_of_turn
        directions = noise(seed, "directions", (experts, hidden))
        self.directions = directions / np.sqrt((directions**2).sum(1, keepdims=True)) if experts else directions

    def random(self, name: str, shape: tuple[int, ...], scale: float, around: float = 0.0) -> tuple[str, torch.Tensor]:
        return name, _bfloat16(noise(self.seed, name, shape) * np.float32(scale) + np.float32(around))

    def linear(self, module: str, outputs: int, inputs: int, gain: float = 1.0, bias: bool = False) -> Named:
        yield self.random(f"{module}.weight", (outputs, inputs), gain / math.sqrt(inputs))
        if bias:
            yield self.random(f"{module}.bias", (outputs,), 0.1)

    def norm(self, module: str, size: int, bias: bool = False) -> Named:
        yield self.random(f"{module}.weight", (size,), 0.2, around=1.0)
        if bias:
            yield self.random(f"{module}.bias", (size,), 0.1)

    def embedding(self, name: str) -> tuple[str, torch.Tensor]:
        rows = noise(self.seed, name, (self.vocab, self.hidden))
        if self.experts:
            rows += np.float32(_CLUSTER) * self.directions[np.arange(self.vocab) % self.experts]
        return name, _bfloat16(rows)

    def router(self, name: str) -> tuple[str, torch.Tensor]:
        rows = noise(self.seed, name, (self.experts, self.hidden)) * np.float32(0.1 / math.sqrt(self.hidden))
        order = np.argsort(noise(self.seed, f"{name} order", (self.experts,)))
        return name, _bfloat16(rows + np.float32(0.25) * self.directions[order])

    def head(self, name: str) -> tuple[str, torch.Tensor]:
        """Rows of uneven length, for clear winners; special tokens stay out of the way, the end of turn comes up."""
        scale = 1.0 + 0.3 * noise(self.seed, f"{name} scale", (self.vocab, 1))
        scale[ORDINARY_TOKENS:] = 0.05
        scale[self.end_of_turn] = 1.3
        rows = noise(self.seed, name, (self.vocab, self.hidden)) * scale * np.float32(2.0 / math.sqrt(self.hidden))
        return name, _bfloat16(rows.astype(np.float32))


def _bfloat16(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)


def llama4_tensors(config: dict[str, Any], seed: int) -> Named:
    """Every tensor of a Llama 4 checkpoint in the published bfloat16 layout; text alone for a flat config."""
    text = config.get("text_config", config)
    maker = Maker(seed, text["hidden_size"], text["vocab_size"], text["num_local_experts"], text["eos_token_id"][-1])
    if "vision_config" in config:
        yield from _vision_tensors(maker, config["vision_config"], text["hidden_size"])
    prefix = "language_model." if "text_config" in config else ""
    step, count = text["interleave_moe_layer_step"], text["num_hidden_layers"]
    yield maker.embedding(f"{prefix}model.embed_tokens.weight")
    for index in range(count):
        layer = f"{prefix}model.layers.{index}"
        yield from _attention_tensors(maker, layer, text, text["head_dim"])
        if (index + 1) % step == 0:
            yield from _moe_tensors(maker, f"{layer}.feed_forward", text)
        else:
            yield from _mlp_tensors(maker, f"{layer}.feed_forward", text["intermediate_size_mlp"])
    yield from maker.norm(f"{prefix}model.norm", maker.hidden)
    yield maker.head(f"{prefix}lm_head.weight")


def llama3_tensors(config: dict[str, Any], seed: int) -> Named:
    maker = Maker(seed, config["hidden_size"], config["vocab_size"], 0, config["eos_token_id"][-1])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    yield maker.embedding("model.embed_tokens.weight")
    for index in range(config["num_hidden_layers"]):
        yield from _attention_tensors(maker, f"model.layers.{index}", config, head_dim)
        yield from _mlp_tensors(maker, f"model.layers.{index}.mlp", config["intermediate_size"])
    yield from maker.norm("model.norm", maker.hidden)
    if not config["tie_word_embeddings"]:
        yield maker.head("lm_head.weight")


def _attention_tensors(maker: Maker, layer: str, text: dict[str, Any], head_dim: int) -> Named:
    """Attention and both norms of one decoder layer."""
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield from maker.norm(f"{layer}.{name}", maker.hidden)
    for name, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads"), ("v", "num_key_value_heads")):
        yield from maker.linear(f"{layer}.self_attn.{name}_proj", text[heads] * head_dim, maker.hidden, 1.2)
    yield from maker.linear(f"{layer}.self_attn.o_proj", maker.hidden, text["num_attention_heads"] * head_dim)


def _mlp_tensors(maker: Maker, prefix: str, inner: int) -> Named:
    yield from maker.linear(f"{prefix}.gate_proj", inner, maker.hidden)
    yield from maker.linear(f"{prefix}.up_proj", inner, maker.hidden)
    yield from maker.linear(f"{prefix}.down_proj", maker.hidden, inner)


def _moe_tensors(maker: Maker, prefix: str, text: dict[str, Any]) -> Named:
    """Fused experts are applied as x @ W: [experts, in, out], the gate's columns before the up projection's."""
    experts, hidden, inner = text["num_local_experts"], maker.hidden, text["intermediate_size"]
    yield maker.random(f"{prefix}.experts.gate_up_proj", (experts, hidden, 2 * inner), 1.0 / math.sqrt(hidden))
    yield maker.random(f"{prefix}.experts.down_proj", (experts, inner, hidden), 1.0 / math.sqrt(inner))
    yield maker.router(f"{prefix}.router.weight")
    yield from _mlp_tensors(maker, f"{prefix}.shared_expert", inner)


def _vision_tensors(maker: Maker, vision: dict[str, Any], hidden: int) -> Named:
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    side = vision["image_size"] // vision["patch_size"]
    yield maker.random("vision_model.class_embedding", (width,), 1.0)
    yield maker.random("vision_model.positional_embedding_vlm", (side * side + 1, width), 0.5)
    patch = vision["num_channels"] * vision["patch_size"] ** 2
    yield from maker.linear("vision_model.patch_embedding.linear", width, patch, 2.0)
    for name in ("layernorm_pre", "layernorm_post"):
        yield from maker.norm(f"vision_model.{name}", width, bias=True)
    for index in range(vision["num_hidden_layers"]):
        layer = f"vision_model.model.layers.{index}"
        for name in "qkvo":
            yield from maker.linear(f"{layer}.self_attn.{name}_proj", width, width, bias=True)
        yield from maker.linear(f"{layer}.mlp.fc1", inner, width, bias=True)
        yield from maker.linear(f"{layer}.mlp.fc2", width, inner, bias=True)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield from maker.norm(f"{layer}.{name}", width, bias=True)
    adapter, middle = "vision_model.vision_adapter.mlp", vision["projector_input_dim"]
    yield from maker.linear(f"{adapter}.fc1", middle, inner, 1.5)
    yield from maker.linear(f"{adapter}.fc2", middle, middle, 1.5)
    yield from maker.linear("multi_modal_projector.linear_1", hidden, vision["vision_output_dim"], 2.0)


def quantize(tensors: Named, also_shared: bool) -> Named:
    """Fused experts -> float8 weight and bfloat16 scale per expert and projection; shared experts and MLPs if asked."""
    for name, tensor in tensors:
        if name.endswith("experts.gate_up_proj") or name.endswith("experts.down_proj"):
            prefix, kind = name.rsplit(".", 1)
            for expert, weight in enumerate(tensor.mT):  # [out, in]
                halves = zip(("gate_proj", "up_proj"), weight.chunk(2), strict=True)
                for part, rows in halves if kind == "gate_up_proj" else [("down_proj", weight)]:
                    yield from _quantized(f"{prefix}.{expert}.{part}", rows)
        elif also_shared and ".feed_forward." in name and name.endswith("_proj.weight"):
            yield from _quantized(name.removesuffix(".weight"), tensor)
        else:
            yield name, tensor


def _quantized(module: str, weight: torch.Tensor) -> Named:
    largest = weight.float().abs().amax(dim=1, keepdim=True)
    scale = (largest / _FP8_MAX).clamp(min=1e-12).to(torch.bfloat16)
    rounded = (weight.float() / scale.float()).clamp(-_FP8_MAX, _FP8_MAX)
    yield f"{module}.weight", rounded.to(torch.float8_e4m3fn).contiguous()
    yield f"{module}.weight_scale", scale
