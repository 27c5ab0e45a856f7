"""What an operator sees while a server starts: named phases, progress, then where to send the first request."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TextIO

from remuda.protocol.progress import PhaseProgress

_BAR_WIDTH = 24


class _Phase:
    """How far every rank is in one phase."""

    def __init__(self) -> None:
        self.done: dict[int, tuple[int, int]] = {}  # rank -> done, total

    def complete(self, ranks: int) -> bool:
        return len(self.done) == ranks and all(done >= total for done, total in self.done.values())

    def leave(self, rank: int) -> None:
        done, total = self.done.get(rank, (0, 0))
        self.done[rank] = max(done, total), max(done, total)

    def rate(self, seconds: float) -> str:
        """What each rank did of it in a second, where the units are bytes; else nothing."""
        total = sum(total for _, total in self.done.values())
        per_rank = total / len(self.done) / max(seconds, 1e-9) / 1e9
        return f", {per_rank:.1f} GB/s" + (" a rank" if len(self.done) > 1 else "") if total > 1 << 20 else ""

    def mebibytes(self) -> str:
        """How much of how much, where the units are bytes; else nothing."""
        done, total = (sum(column) / 2**20 for column in zip(*self.done.values(), strict=True))
        return f"{done:,.0f} of {total:,.0f} MiB, " if total > 1 else ""

    def bar(self) -> str:
        done, total = (sum(column) for column in zip(*self.done.values(), strict=True))
        filled = int(_BAR_WIDTH * done / total) if total else 0
        slowest = min(self.done, key=lambda rank: self.done[rank][0] / max(1, self.done[rank][1]))
        return "[" + "#" * filled + "." * (_BAR_WIDTH - filled) + f"] slowest: rank {slowest}"


class StartupPrinter:
    """One line per phase that all ranks have passed; on a terminal also a line, redrawn, for the one that is going on.

    Ranks may be in different phases at the same moment: lines come in the order in which phases began.
    """

    def __init__(self, ranks: int, out: TextIO = sys.stderr) -> None:
        self._ranks = ranks
        self._out = out
        self._terminal = out.isatty()
        self._started_s = self._phase_began_s = time.monotonic()
        self._drawn_s = 0.0
        self._phases: dict[str, _Phase] = {}

    def line(self, text: str) -> None:
        """A line of its own."""
        self._write(("\r\x1b[2K" if self._terminal else "") + text + "\n")

    def progress(self, message: PhaseProgress) -> None:
        self._phases.setdefault(message.phase, _Phase()).done[message.rank] = message.done, message.total
        for name, phase in self._phases.items():
            if name == message.phase:
                break
            phase.leave(message.rank)  # a rank that is in a later phase has passed the earlier ones
        while self._phases:
            name, phase = next(iter(self._phases.items()))
            if not phase.complete(self._ranks):
                self._draw(name, phase)
                return
            self._end_phase()

    def finish(self, report: str) -> None:
        """Every rank is ready: the phases still open have ended."""
        while self._phases:
            self._end_phase()
        self.line(f"{report}\n  ready after {time.monotonic() - self._started_s:.1f} s")

    def _end_phase(self) -> None:
        name, phase = next(iter(self._phases.items()))
        now_s = time.monotonic()
        took_s = now_s - self._phase_began_s
        self.line(f"  {name:<10} {phase.mebibytes()}{took_s:.1f} s{phase.rate(took_s)}")
        self._phase_began_s = now_s
        del self._phases[name]

    def _draw(self, name: str, phase: _Phase) -> None:
        now_s = time.monotonic()
        if self._terminal and now_s - self._drawn_s > 0.05:
            self._drawn_s = now_s
            self._write(f"\r\x1b[2K  {name:<10} {phase.mebibytes()}{phase.bar()}")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a full log disk is no reason not to serve
            self._out.write(text)
            self._out.flush()


def invitation(url: str, model: str, api_key: bool, images: bool) -> str:
    """The lines to paste first."""
    auth = " -H 'Authorization: Bearer YOUR_KEY'" if api_key else ""
    key = "YOUR_KEY" if api_key else "none"
    question = "What is 12 + 30?"
    more = "\n  (images: a content part of type image_url with a data: URL)" if images else ""
    return f"""\
Ready at {url}

  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{auth} \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "{question}"}}], "max_tokens": 64}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="{key}")
  for chunk in client.chat.completions.create(
      model="{model}", messages=[{{"role": "user", "content": "{question}"}}], max_tokens=64, stream=True
  ):
      print(chunk.choices[0].delta.content or "", end="", flush=True)
{more}
"""
