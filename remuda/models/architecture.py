"""What the registry knows of an architecture. Nothing here imports a model before one is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from remuda.config.fields import Fields
from remuda.config.model import ModelConfig
from remuda.models.tiny import TinyKind

if TYPE_CHECKING:
    from remuda.models.interfaces import Model

ConfigReader = Callable[[Fields, Path, str], ModelConfig]
"""(config.json, checkpoint directory, dtype asked for) -> the model; ConfigError for what is not supported."""


@dataclass(frozen=True)
class Architecture:
    """A class of models under the name that config.json's `architectures` gives it."""

    name: str
    folder: str  # the package whose model.py has a class of this name
    read_config: ConfigReader
    tiny: Mapping[str, TinyKind] = field(default_factory=dict)  # kinds that `make-tiny` can make
    tool_call_parser: str = "hermes"  # how its models write calls, unless their chat template shows another way

    def model_class(self) -> type[Model]:
        model: type[Model] = getattr(import_module(f"{self.folder}.model"), self.name)
        return model

    def supports(self, capability: type) -> bool:
        """Whether its model has one of models/interfaces.py's capabilities, such as SupportsPP or SupportsImages."""
        return issubclass(self.model_class(), capability)
