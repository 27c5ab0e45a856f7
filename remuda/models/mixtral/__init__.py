"""Mixtral."""

from remuda.models.architecture import Architecture
from remuda.models.mixtral.config import read_config
from remuda.models.mixtral.tiny import KINDS

ARCHITECTURES = (Architecture("MixtralForCausalLM", __name__, read_config, KINDS, "mistral"),)
