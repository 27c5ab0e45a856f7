"""Llama 2 and 3.x."""

from remuda.models.architecture import Architecture
from remuda.models.llama.config import read_config
from remuda.models.llama.tiny import KINDS

ARCHITECTURES = (Architecture("LlamaForCausalLM", __name__, read_config, KINDS, "llama3_json"),)
