"""Tiny Qwen3: a tied head, and heads that are wider together than the hidden size."""

from __future__ import annotations

from remuda.models.tiny import (
    Config,
    Embedding,
    Head,
    Random,
    SpecialTokens,
    Tensors,
    TinyKind,
    attention,
    mlp,
    no_vision,
    norm,
)

TOKENS = SpecialTokens(
    {
        "<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<|vision_start|>": 9, "<|vision_end|>": 10,
        "<|image_pad|>": 12, "<tool_call>": 14, "</tool_call>": 15, "<|fim_prefix|>": 16, "<|fim_middle|>": 17,
        "<|fim_suffix|>": 18, "<tool_response>": 22, "</tool_response>": 23, "<think>": 24, "</think>": 25,
    },
    bos=None, end_of_turn="<|im_end|>", pad="<|endoftext|>", template="qwen3_chat_template.jinja",
    visible=("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)  # fmt: skip
QWEN3: Config = {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": TOKENS["<|endoftext|>"],
    "eos_token_id": TOKENS["<|im_end|>"], "head_dim": 64, "hidden_act": "silu", "hidden_size": 256,
    "initializer_range": 0.02, "intermediate_size": 512, "max_position_embeddings": 8192, "max_window_layers": 6,
    "num_attention_heads": 8, "num_hidden_layers": 6, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "transformers_version": "4.51.0",
    "use_cache": True, "use_sliding_window": False, "vocab_size": TOKENS.vocab_size,
}  # fmt: skip


def qwen3_config(changes: Config, vision_changes: Config) -> Config:
    no_vision(vision_changes)
    named = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "tie_word_embeddings": True}
    return named | QWEN3 | changes


def attention_tensors(layer: str, config: Config) -> Tensors:
    """With a norm of each query and key head."""
    yield from attention(layer, config, config["head_dim"])
    for name in "qk":
        yield from norm(f"{layer}.self_attn.{name}_norm", config["head_dim"])


def _tensors(config: Config) -> Tensors:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    tied = config["tie_word_embeddings"]  # then a token's own row must be small, or every token repeats itself
    yield Embedding("model.embed_tokens.weight", (vocab, hidden), scale=0.05 if tied else 1.0)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield from attention_tensors(layer, config)
        yield from mlp(f"{layer}.mlp", hidden, config["intermediate_size"])
    if tied:
        yield Random("model.norm.weight", (hidden,), 0.6, around=3.0)
    else:
        yield from norm("model.norm", hidden)
        yield Head("lm_head.weight", (vocab, hidden), TOKENS[TOKENS.end_of_turn])


KINDS = {"qwen3": TinyKind("Qwen3: dense, QK norm with weights, tied head", qwen3_config, _tensors, TOKENS)}
