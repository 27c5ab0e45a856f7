"""Qwen3, the dense models."""

from remuda.models.architecture import Architecture
from remuda.models.qwen3.config import read_config
from remuda.models.qwen3.tiny import KINDS

_MODULES = {"attention": "model.layers.{index}.self_attn.q_proj", "dense": "model.layers.{index}.mlp.gate_proj"}
ARCHITECTURES = (Architecture("Qwen3ForCausalLM", __name__, read_config, _MODULES, KINDS),)
