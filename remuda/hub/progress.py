"""How far a download is: on a terminal one line, redrawn; elsewhere a line per file."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TextIO

_REDRAW_S = 0.2
_GIB = 2**30


class Progress:
    """Of `total` bytes in `files` files, `there` of which were downloaded before. Called from several threads."""

    def __init__(self, total: int, files: int, there: int, out: TextIO) -> None:
        self._total, self._files = total, files
        self._there = self._done = there
        self._finished = 0
        self._out = out
        self._terminal = self._out.isatty()
        self._began_s = self._drawn_s = time.monotonic()
        self._lock = threading.Lock()

    def line(self, text: str) -> None:
        self._write(("\r\x1b[2K" if self._terminal else "") + text + "\n")

    def advance(self, count: int) -> None:
        """`count` more bytes are on disk; negative where some had to be thrown away."""
        with self._lock:
            self._done += count
            now_s = time.monotonic()
            if self._terminal and now_s - self._drawn_s > _REDRAW_S:
                self._drawn_s = now_s
                self._write(f"\r\x1b[2K  {self._state(now_s)}")

    def finished(self, name: str) -> None:
        with self._lock:
            self._finished += 1
            if not self._terminal:
                self.line(f"  {name} ({self._finished} of {self._files} files; {self._state(time.monotonic())})")

    def close(self) -> None:
        seconds = time.monotonic() - self._began_s
        self.line(f"  {size(self._done - self._there)} downloaded in {seconds:.1f} s")

    def _state(self, now_s: float) -> str:
        speed = (self._done - self._there) / max(now_s - self._began_s, 1e-3)
        text = f"{size(self._done)} of {size(self._total)}, {size(int(speed))}/s"
        left_s = (self._total - self._done) / speed if speed > 0 else 0
        return text + (f", {left_s / 60:.0f} min left" if left_s > 90 else "")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a full log disk is no reason not to download
            self._out.write(text)
            self._out.flush()


def size(count: int) -> str:
    return f"{count / _GIB:,.1f} GiB" if count >= _GIB else f"{count / 2**20:,.1f} MiB"
