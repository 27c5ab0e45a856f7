"""Qwen3, the dense models."""

from remuda.models.architecture import Architecture
from remuda.models.qwen3.config import read_config
from remuda.models.qwen3.tiny import KINDS

ARCHITECTURES = (Architecture("Qwen3ForCausalLM", __name__, read_config, KINDS, "hermes"),)
