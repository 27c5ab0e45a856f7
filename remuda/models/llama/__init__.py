"""Llama 2 and 3.x."""

from remuda.models.architecture import Architecture
from remuda.models.llama.config import read_config
from remuda.models.llama.tiny import KINDS

_MODULES = {"attention": "model.layers.{index}.self_attn.q_proj", "dense": "model.layers.{index}.mlp.gate_proj"}
ARCHITECTURES = (Architecture("LlamaForCausalLM", __name__, read_config, _MODULES, KINDS),)
