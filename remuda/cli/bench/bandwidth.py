"""How fast a GPU copies its own memory: what the floor of decode is counted with."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

_BYTES = 1 << 30
_COPIES = 20


def copy_bytes_per_s() -> float:
    """Bytes read plus bytes written per second on the first visible GPU, in a process that leaves nothing there."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure_copy).result()


def measure_copy() -> float:
    """The same in this process."""
    import torch

    source = torch.empty(_BYTES, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for event in (begin, end):  # what runs before the first is warm-up
        for _ in range(_COPIES):
            target.copy_(source)
        event.record()
    end.synchronize()
    return 2 * _BYTES * _COPIES / (begin.elapsed_time(end) * 1e-3)
