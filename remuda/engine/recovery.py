"""Which requests a replica gets after another has died, and which are given up: pure functions of what is known.

Any request may have been open when a replica died; few are why it died. A request is *suspect* when two replicas in a
row died without a token of it. Suspects run first, the most suspect one with nobody beside it, each until its first
token; the others wait. A suspect during whose lonely trial the replica dies again is guilty, and is not run again.
So one that kills every replica takes three or four of them along and then leaves the others in peace, while any
number of deaths that come from elsewhere never ends a request that made progress in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_SUSPECT_DEATHS = 2


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of an open request. `deaths`: of replicas that had it, since its last token."""

    running: bool  # the replica has it; false: it waits here
    deaths: int

    @property
    def suspect(self) -> bool:
        return self.deaths >= _SUSPECT_DEATHS


def next_to_run(requests: Mapping[str, Standing]) -> list[str]:
    """Those to hand to the replica that serves now; `requests` are in order of arrival, and so are these."""
    if any(standing.running and standing.suspect for standing in requests.values()):
        return []  # its trial goes on
    waiting = [id_ for id_, standing in requests.items() if not standing.running]
    suspects = [id_ for id_ in waiting if requests[id_].suspect]
    return [max(suspects, key=lambda id_: requests[id_].deaths)] if suspects else waiting


def after_death(requests: Mapping[str, Standing]) -> tuple[dict[str, Standing], list[str]]:
    """The replica has died: how everybody stands now, without the guilty, and the guilty."""
    running = [id_ for id_, standing in requests.items() if standing.running]
    guilty = [id_ for id_ in running if len(running) == 1 and requests[id_].suspect]
    left = {
        id_: Standing(running=False, deaths=standing.deaths + standing.running)
        for id_, standing in requests.items()
        if id_ not in guilty
    }
    return left, guilty


class BackOff:
    """How long to wait before a replica is started again: not at all, unless one after the other gets nowhere."""

    _FIRST_S, _LONGEST_S = 1.0, 30.0

    def __init__(self) -> None:
        self._next_s = 0.0

    def after(self, *, fruitful: bool) -> float:
        """Seconds to wait after a life that did some work, or did none (it did not even start)."""
        if fruitful:
            self._next_s = 0.0
        wait_s = self._next_s
        self._next_s = min(self._LONGEST_S, max(self._FIRST_S, 2 * wait_s))
        return wait_s
