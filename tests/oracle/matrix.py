"""The layouts and engine settings under which every preset must reproduce the oracle.

`CASES` covers every value of every dimension in few engine starts, for the suite. The full product is
`python -m tests.oracle.full_matrix`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    preset: str
    tp: int = 1
    pp: int = 1
    ep: bool = False
    chunk_tokens: int = 8192  # --max-num-batched-tokens: 7 and 64 cut prompts into prefill chunks
    prefix_cache: bool = True
    starve_cache: bool = False  # so few KV pages that sequences preempt one another

    def __str__(self) -> str:
        extras = [f"chunk{self.chunk_tokens}"] if self.chunk_tokens != 8192 else []
        extras += [name for name, on in (("ep", self.ep), ("starved", self.starve_cache)) if on]
        extras += [] if self.prefix_cache else ["nocache"]
        return "-".join([self.preset, f"tp{self.tp}", f"pp{self.pp}", *extras])


CASES = (
    Case("maverick-tiny"),
    Case("maverick-tiny", tp=2, pp=1, ep=True, chunk_tokens=64),
    Case("maverick-tiny", tp=2, pp=3, chunk_tokens=7),
    Case("maverick-tiny", tp=4, pp=2, ep=True, starve_cache=True),
    Case("maverick-tiny", tp=8, pp=2, chunk_tokens=64),
    Case("scout-tiny", starve_cache=True),
    Case("scout-tiny", tp=1, pp=3, chunk_tokens=64, prefix_cache=False),
    Case("scout-tiny", tp=4, pp=1, chunk_tokens=7),
    Case("scout-tiny", tp=2, pp=2, ep=True),
    Case("scout-tiny", tp=8, pp=2, ep=True),
    Case("maverick-tiny-fp8", tp=1, pp=2, chunk_tokens=7),
    Case("maverick-tiny-fp8", tp=4, pp=3, ep=True),
    Case("scout-tiny-fp8", tp=2, pp=1, starve_cache=True),
    Case("scout-tiny-fp8", tp=4, pp=2, chunk_tokens=64),
    Case("llama3-tiny", tp=1, pp=1, chunk_tokens=7),
    Case("llama3-tiny", tp=2, pp=3, starve_cache=True),
    Case("llama3-tiny", tp=8, pp=2, chunk_tokens=64),
)


def full_product() -> Iterator[Case]:
    """{TP, PP} in {1,2,4} x {1,2,3} and 8 x 2; EP on and off; chunks of 7, 64 and unlimited; preemption forced."""
    layouts = [*itertools.product((1, 2, 4), (1, 2, 3)), (8, 2)]
    for preset in ("maverick-tiny", "scout-tiny", "maverick-tiny-fp8", "scout-tiny-fp8", "llama3-tiny"):
        for tp, pp in layouts:
            for ep in (False, True) if tp > 1 and preset != "llama3-tiny" else (False,):
                for chunk in (7, 64, 8192):
                    yield Case(preset, tp, pp, ep, chunk)
                yield Case(preset, tp, pp, ep, starve_cache=True)
