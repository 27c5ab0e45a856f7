"""Kill random processes under a crowd of clients: `python -m tests.e2e.campaign --seed 1 --seconds 240`.

One line per round of eight calls: what was killed when, and which calls (by number) were answered otherwise than
without a fault.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.e2e.crowd import EXACT, LAYOUT, NAME, Crowd, late_text
from tests.e2e.server import Server, serve
from tests.processes import descendants

MOST_KILLS = 4  # of a round
LONGEST_PAUSE_S = 3.0


def descriptors(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def kill_some(server: Server, rng: random.Random) -> list[str]:
    """Of whatever is there at the moment: ranks, launcher, engine, also such as just start."""
    killed: list[str] = []
    for _ in range(rng.randint(1, MOST_KILLS)):
        pause_s = rng.uniform(0.0, LONGEST_PAUSE_S)
        time.sleep(pause_s)
        if family := descendants(server.process.pid):
            victim = rng.choice(family)
            victim.kill()
            killed.append(f"{victim.title[-24:]} after {pause_s:.1f} s")
    return killed


def run(server: Server, rng: random.Random, seconds: float) -> bool:
    """Whether every answer of every round was right."""
    stop = late_text(server)
    wanted = Crowd(server, stop).results()
    kills, wrong = 0, 0
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        crowd = Crowd(server, stop)
        killed = kill_some(server, rng)
        answers = crowd.results()
        changed = [number for number, pair in enumerate(zip(answers, wanted, strict=True)) if pair[0] != pair[1]]
        kills, wrong = kills + len(killed), wrong + len(changed)
        print(f"{'; '.join(killed)}: changed {changed}, {descriptors(server)} descriptors", flush=True)
    print(f"{kills} kills, {wrong} answers changed")
    return not wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "log", *LAYOUT, *EXACT, *NAME) as server:
        return 0 if run(server, random.Random(options.seed), options.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
