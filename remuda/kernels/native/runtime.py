"""The native library of this process: loaded once, between two steps; the kernels of `select.native_table` call it.

Its functions release the interpreter lock. One thread computes at a time; a second one that calls a kernel meanwhile is
served by its own thread alone.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from remuda.kernels.native.build import NativeUnavailable
from remuda.kernels.native.memory import Arena
from remuda.kernels.native.structs import SIGNATURES

library: ctypes.CDLL
weights = Arena()  # where packed weights live

SPIN_US = 100  # how long an idle worker thread spins: longer than Python needs between two kernels


def load(path: Path, threads: int) -> ctypes.CDLL:
    """Load the object; its kernels run on `threads` threads.

    Raises NativeUnavailable if the kernel refuses the processor's tile registers to this process.
    """
    global library
    loaded = ctypes.CDLL(str(path))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    if errno := loaded.remuda_init():
        raise NativeUnavailable(f"native kernels are not available: the kernel refuses AMX to this process ({errno})")
    loaded.remuda_set_threads(threads, SPIN_US if threads > 1 else 0)
    library = loaded
    return loaded
