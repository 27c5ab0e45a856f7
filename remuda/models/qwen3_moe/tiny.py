"""Tiny Qwen3-MoE: two of eight experts in every layer, each expert a module of its own."""

from __future__ import annotations

from remuda.models.qwen3.tiny import QWEN3, TOKENS, attention_tensors
from remuda.models.tiny import (
    Config,
    Embedding,
    Float8,
    Head,
    Int4,
    Router,
    Tensors,
    TinyKind,
    mlp,
    no_vision,
    norm,
)


def qwen3_moe_config(changes: Config, vision_changes: Config) -> Config:
    no_vision(vision_changes)
    experts = {
        "architectures": ["Qwen3MoeForCausalLM"], "decoder_sparse_step": 1, "mlp_only_layers": [],
        "model_type": "qwen3_moe", "moe_intermediate_size": 128, "norm_topk_prob": True, "num_experts": 8,
        "num_experts_per_tok": 2, "output_router_logits": False, "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": False,
    }  # fmt: skip
    return QWEN3 | experts | changes


def _tensors(config: Config) -> Tensors:
    hidden, vocab, experts = config["hidden_size"], config["vocab_size"], config["num_experts"]
    yield Embedding("model.embed_tokens.weight", (vocab, hidden), clusters=experts)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield from attention_tensors(layer, config)
        if (index + 1) % config["decoder_sparse_step"] or index in config["mlp_only_layers"]:
            yield from mlp(f"{layer}.mlp", hidden, config["intermediate_size"])
            continue
        yield Router(f"{layer}.mlp.gate.weight", (experts, hidden))
        for expert in range(experts):
            yield from mlp(f"{layer}.mlp.experts.{expert}", hidden, config["moe_intermediate_size"])
    yield from norm("model.norm", hidden)
    yield Head("lm_head.weight", (vocab, hidden), TOKENS[TOKENS.end_of_turn])


_LINEAR, _IGNORE = r".*\.(self_attn|mlp)\..*_proj\.weight", ("re:.*mlp.gate$", "re:.*lm_head")
KINDS = {
    "qwen3-moe": TinyKind(
        "Qwen3-MoE: two of eight experts in every layer, QK norm with weights", qwen3_moe_config, _tensors, TOKENS
    ),
    "qwen3-moe-fp8": TinyKind(
        "the same, all but router and head in FP8",
        qwen3_moe_config,
        _tensors,
        TOKENS,
        Float8(_LINEAR, _IGNORE),
    ),
    "qwen3-moe-int4": TinyKind(
        "the same in packed 4-bit integers, a scale per 32 inputs",
        qwen3_moe_config,
        _tensors,
        TOKENS,
        Int4(_LINEAR, _IGNORE, 32),
    ),
}
