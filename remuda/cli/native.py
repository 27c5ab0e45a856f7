"""`remuda native`: build the native CPU kernels now, so that no server has to do it in the background."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from remuda.config.arguments import Flag, FlagGroup
from remuda.config.parser import FlagParser

FLAGS = FlagGroup("build", (Flag("quiet", "print only what went wrong", bool, False),))


def run(argv: Sequence[str]) -> int:
    options = FlagParser("remuda native", "Build the native CPU kernels into the cache directory.", (FLAGS,)).read(argv)
    from remuda.kernels.native.build import build

    started = time.perf_counter()
    library = build()
    if not options["quiet"]:
        print(f"{library} ({time.perf_counter() - started:.1f} s)", file=sys.stdout)
    return 0
