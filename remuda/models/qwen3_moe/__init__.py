"""Qwen3-MoE."""

from remuda.models.architecture import Architecture
from remuda.models.qwen3_moe.config import read_config
from remuda.models.qwen3_moe.tiny import KINDS

_MODULES = {
    "attention": "model.layers.{index}.self_attn.q_proj",
    "dense": "model.layers.{index}.mlp.gate_proj",
    "routed_experts": "model.layers.{index}.mlp.experts.0.gate_proj",
}
ARCHITECTURES = (Architecture("Qwen3MoeForCausalLM", __name__, read_config, _MODULES, KINDS),)
