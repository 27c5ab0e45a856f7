"""What a rank's share of a model weighs: the sums of what the model's own layers declare when they are built.

Building allocates nothing and imports no torch. A share is built once for (TP, EP) with all layers; whatever contiguous
stage of it is asked for is then a sum. Where ranks differ, under uneven expert parallelism, it is the fullest one's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

from remuda.config.model import ModelConfig
from remuda.layers.base import BuildContext, Layer
from remuda.models.interfaces import Model
from remuda.models.registry import ARCHITECTURES
from remuda.parallel.collectives import SingleRank
from remuda.parallel.topology import Topology
from remuda.weights.parameter import Parameter


@dataclass(frozen=True)
class Weights:
    """Of some layers."""

    bytes: Counter[str]  # by part of the model
    active: float  # parameters that a token of text passes through: the proxy for their time

    @classmethod
    def of(cls, layers: Iterable[Layer]) -> Weights:
        """What they declare."""
        nbytes: Counter[str] = Counter()
        active = 0.0
        for layer in layers:
            for part, used, parameter in _declared(layer, "", 1.0):
                nbytes[part] += parameter.nbytes
                active += used * prod(parameter.shape)
        return cls(nbytes, active)

    @property
    def total_bytes(self) -> int:
        return self.bytes.total()

    def __add__(self, other: Weights) -> Weights:
        return Weights(self.bytes + other.bytes, self.active + other.active)


def _declared(layer: Layer, part: str, used: float) -> Iterator[tuple[str, float, Parameter]]:
    """Every parameter in and below `layer` with its part (the outermost that has a name) and the share that is used."""
    part, used = part or layer.part, used * layer.used
    for parameter in layer.own_parameters():
        yield part or "others", used, parameter
    for below in layer.sublayers():
        yield from _declared(below, part, used)


class Share:
    """One rank's share. Raises CannotCut if the model cannot be dealt to so many ranks."""

    def __init__(self, model: ModelConfig, tp_size: int, expert_parallel: bool = False) -> None:
        self._model = model
        self._tp_size = tp_size
        self._expert_parallel = expert_parallel
        whole = self._build(stages=1, stage=0, layers=range(model.num_layers))
        self.layers = [Weights.of([layer]) for layer in whole.layers]
        self._beside = _beside_layers(whole)

    @cached_property
    def first(self) -> Weights:
        """What the first of several stages has beside its layers."""
        return _beside_layers(self._build(stages=2, stage=0, layers=range(0)))

    @cached_property
    def last(self) -> Weights:
        """What the last of several stages has beside its layers: of tied embeddings, too, a copy."""
        count = self._model.num_layers
        return _beside_layers(self._build(stages=2, stage=1, layers=range(count, count)))

    def stage(self, first_layer: int, last_layer: int) -> Weights:
        """Of the stage with layers [first_layer, last_layer)."""
        here = sum(self.layers[first_layer:last_layer], Weights(Counter(), 0.0))
        starts, ends = first_layer == 0, last_layer == self._model.num_layers
        if starts and ends:
            return self._beside + here
        return (self.first + here if starts else here) + (self.last if ends else Weights(Counter(), 0.0))

    def _build(self, stages: int, stage: int, layers: range) -> Model:
        tp_rank = self._tp_size - 1  # which never has fewer experts than another
        topology = Topology(
            self._tp_size, stages, tp_rank, stage, layers.start, layers.stop, self._model.num_layers,
            self._expert_parallel,
        )  # fmt: skip
        model_class = ARCHITECTURES[self._model.architecture].model_class()
        return model_class(BuildContext(self._model, topology, SingleRank(), device="cpu"))


def _beside_layers(model: Model) -> Weights:
    return Weights.of(layer for layer in model.sublayers() if layer not in model.layers)
