"""Llama 4, Scout and Maverick, with their vision tower or without."""

from remuda.models.architecture import Architecture
from remuda.models.llama4.config import read_config
from remuda.models.llama4.tiny import KINDS, TEXT_KINDS

ARCHITECTURES = (
    Architecture("Llama4ForConditionalGeneration", __name__, read_config, KINDS, "llama4_pythonic"),
    Architecture("Llama4ForCausalLM", __name__, read_config, TEXT_KINDS, "llama4_pythonic"),
)
