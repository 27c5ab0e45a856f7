"""Tiny Mixtral: two of eight experts in every layer, whose modules are called w1, w3 and w2."""

from __future__ import annotations

from remuda.models.tiny import (
    Config,
    Embedding,
    Head,
    Router,
    SpecialTokens,
    Tensors,
    TinyKind,
    attention,
    linear,
    no_vision,
    norm,
)

TOKENS = SpecialTokens(
    {"<unk>": 0, "<s>": 1, "</s>": 2},
    bos="<s>", end_of_turn="</s>", pad="</s>", template="mixtral_chat_template.jinja",
)  # fmt: skip
_MIXTRAL: Config = {
    "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": TOKENS["<s>"],
    "eos_token_id": TOKENS["</s>"], "hidden_act": "silu", "hidden_size": 256, "initializer_range": 0.02,
    "intermediate_size": 128, "max_position_embeddings": 8192, "model_type": "mixtral", "num_attention_heads": 8,
    "num_experts_per_tok": 2, "num_hidden_layers": 6, "num_key_value_heads": 4, "num_local_experts": 8,
    "output_router_logits": False, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
    "sliding_window": None, "tie_word_embeddings": False, "transformers_version": "4.36.0", "use_cache": True,
    "vocab_size": TOKENS.vocab_size,
}  # fmt: skip


def mixtral_config(changes: Config, vision_changes: Config) -> Config:
    no_vision(vision_changes)
    return _MIXTRAL | changes


def _tensors(config: Config) -> Tensors:
    hidden, vocab, experts = config["hidden_size"], config["vocab_size"], config["num_local_experts"]
    inner = config["intermediate_size"]
    yield Embedding("model.embed_tokens.weight", (vocab, hidden), clusters=experts)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield from attention(layer, config, hidden // config["num_attention_heads"])
        yield Router(f"{layer}.block_sparse_moe.gate.weight", (experts, hidden))
        for expert in range(experts):
            module = f"{layer}.block_sparse_moe.experts.{expert}"
            yield from linear(f"{module}.w1", inner, hidden)
            yield from linear(f"{module}.w2", hidden, inner)
            yield from linear(f"{module}.w3", inner, hidden)
    yield from norm("model.norm", hidden)
    yield Head("lm_head.weight", (vocab, hidden), TOKENS[TOKENS.end_of_turn])


KINDS = {"mixtral": TinyKind("Mixtral: two of eight experts in every layer", mixtral_config, _tensors, TOKENS)}
