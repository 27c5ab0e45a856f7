"""Qwen3-MoE."""

from remuda.models.architecture import Architecture
from remuda.models.qwen3_moe.config import read_config
from remuda.models.qwen3_moe.tiny import KINDS

ARCHITECTURES = (Architecture("Qwen3MoeForCausalLM", __name__, read_config, KINDS, "hermes"),)
