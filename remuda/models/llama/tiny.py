"""Tiny Llama 3.1: scaled rope, one end of text and two of turns."""

from __future__ import annotations

import copy

from remuda.models.tiny import (
    Config,
    Embedding,
    Head,
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
        "<|begin_of_text|>": 0, "<|end_of_text|>": 1, "<|finetune_right_pad_id|>": 4, "<|start_header_id|>": 6,
        "<|end_header_id|>": 7, "<|eom_id|>": 8, "<|eot_id|>": 9, "<|python_tag|>": 10,
    },
    bos="<|begin_of_text|>", end_of_turn="<|eot_id|>", pad="<|finetune_right_pad_id|>",
    template="llama3_chat_template.jinja",
)  # fmt: skip
_LLAMA3: Config = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu",
    "hidden_size": 256, "initializer_range": 0.02, "intermediate_size": 512, "max_position_embeddings": 8192,
    "mlp_bias": False, "model_type": "llama", "num_attention_heads": 8, "num_hidden_layers": 6,
    "num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 64, "rope_type": "llama3"},
    "tie_word_embeddings": False, "use_cache": True,
}  # fmt: skip


def llama3_config(changes: Config, vision_changes: Config) -> Config:
    no_vision(vision_changes)
    return (
        copy.deepcopy(_LLAMA3)
        | {
            "bos_token_id": TOKENS["<|begin_of_text|>"],
            "eos_token_id": [TOKENS[name] for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")],
            "transformers_version": "4.43.0",
            "vocab_size": TOKENS.vocab_size,
        }
        | changes
    )


def _tensors(config: Config) -> Tensors:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield Embedding("model.embed_tokens.weight", (vocab, hidden))
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield from attention(layer, config, config.get("head_dim") or hidden // config["num_attention_heads"])
        yield from mlp(f"{layer}.mlp", hidden, config["intermediate_size"])
    yield from norm("model.norm", hidden)
    if not config["tie_word_embeddings"]:
        yield Head("lm_head.weight", (vocab, hidden), TOKENS[TOKENS.end_of_turn])


KINDS = {"llama3": TinyKind("Llama 3.1: dense, full attention, scaled rope", llama3_config, _tensors, TOKENS)}
