"""The waiting queue: by priority, then arrival. Bounded for newcomers; preempted sequences always come back in."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from remuda.engine.sequence import Sequence, Status
from remuda.protocol.errors import QueueFull


class WaitingQueue:
    """A heap with lazy deletion: a sequence that ends while it waits is skipped when it comes up."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._heap: list[tuple[tuple[int, int], Sequence]] = []
        self._length = 0
        self.tokens = 0  # prompt (and recomputed) tokens that wait

    def __len__(self) -> int:
        return self._length

    def check_room(self, free_slots: int) -> None:
        """Raise QueueFull if a newcomer would have to wait behind too many; whoever finds a slot does not count."""
        if self._length >= self._max_waiting + free_slots:
            raise QueueFull(f"{self._length - free_slots} requests are waiting already, as many as are let in")

    def push(self, seq: Sequence) -> None:
        heappush(self._heap, (seq.order, seq))
        self._length += 1
        self.tokens += seq.known

    def head(self) -> Sequence | None:
        """The sequence whose turn it is, left in place."""
        heap = self._heap
        while heap and heap[0][1].status is not Status.WAITING:
            heappop(heap)
        return heap[0][1] if heap else None

    def pop(self) -> None:
        """Take out the head."""
        self.discard(heappop(self._heap)[1])

    def discard(self, seq: Sequence) -> None:
        """Account for a waiting sequence that leaves; its heap entry, if it is still there, is skipped later."""
        self._length -= 1
        self.tokens -= seq.known
        if len(self._heap) > 2 * self._length + 64:
            self._heap = [entry for entry in self._heap if entry[1].status is Status.WAITING]
            heapify(self._heap)
