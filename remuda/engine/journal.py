"""An open sequence, with everything that running it on another replica takes."""

from __future__ import annotations

import msgspec

from remuda.engine.generation import Generation
from remuda.engine.output import OutputProcessor
from remuda.engine.recovery import Standing
from remuda.metrics.serving import SequenceTimes
from remuda.protocol.request import EngineRequest


class OpenSequence:
    """An entry of the journal. Its text, half-seen stop strings and log-probabilities stay in `processor`, so another
    engine has only to go on after the tokens that came: the random numbers follow from seed and position."""

    __slots__ = (
        "_deaths", "_replayed", "_tokens_before", "generation", "key", "processor", "request", "running", "times",
    )  # fmt: skip

    def __init__(
        self, request: EngineRequest, processor: OutputProcessor, generation: Generation, key: int, times: SequenceTimes
    ) -> None:
        self.request = request
        self.processor = processor
        self.generation = generation
        self.key = key
        self.times = times
        self.running = False  # an engine has it
        self._deaths = 0
        self._replayed = False
        self._tokens_before = 0  # what it had when its engine got it

    @property
    def replayed(self) -> bool:
        """It goes on behind another engine than its first."""
        return self._replayed

    @property
    def standing(self) -> Standing:
        """For the policy of `recovery.py`."""
        progress = self.running and len(self.processor.token_ids) > self._tokens_before
        return Standing(self.running, 0 if progress else self._deaths)

    def engine_died(self, standing: Standing) -> None:
        """It waits from now on; `standing` is what the policy makes of it."""
        self._replayed |= self.running
        self.running = standing.running
        self._deaths = standing.deaths

    def hand_over(self) -> EngineRequest:
        """What to send to an engine: the request, to go on after what its client has received already."""
        self.running = True
        self._deaths = self.standing.deaths
        emitted = self.processor.token_ids
        self._tokens_before = len(emitted)
        if not emitted:
            return self.request
        return msgspec.structs.replace(self.request, emitted_token_ids=list(emitted))
