"""Llama 4, Scout and Maverick, with their vision tower or without."""

from remuda.models.architecture import Architecture
from remuda.models.llama4.config import read_config
from remuda.models.llama4.tiny import KINDS, TEXT_KINDS

_MODULES = {
    "attention": "model.layers.{index}.self_attn.q_proj",
    "dense": "model.layers.{index}.feed_forward.gate_proj",
    "shared_expert": "model.layers.{index}.feed_forward.shared_expert.gate_proj",
    "routed_experts": "model.layers.{index}.feed_forward.experts.0.gate_proj",
}
_IN_LANGUAGE_MODEL = {part: f"language_model.{module}" for part, module in _MODULES.items()}

ARCHITECTURES = (
    Architecture("Llama4ForConditionalGeneration", __name__, read_config, _IN_LANGUAGE_MODEL, KINDS),
    Architecture("Llama4ForCausalLM", __name__, read_config, _MODULES, TEXT_KINDS),
)
