"""The examples run as they stand, and say what the demo model says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server import Server, serve

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SAID = {
    "streaming_client.py": "> What is 47 x 36?\n47 x 36 = 47 x 30 + 47 x 6 = 1410 + 282 = 1692\n"
                           "> Now add 8.\n1692 + 8 = 1700\n",
    "images.py": "> What is where in the image?\nred circle top left, blue square bottom right\n"
                 "> What color is the circle?\nred\n",
    "tools.py": "> Set a timer for 25 minutes.\na timer of 25 minutes is set\n"
                '> Play the song "silver river".\nnow playing: silver river\n',
}  # fmt: skip


def output(example: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / example), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("examples") / "log", "--max-model-len", "2048") as server:
        yield server


@pytest.mark.parametrize("example", sorted(SAID))
def test_clients(server: Server, example: str) -> None:
    assert output(example, server.url) == SAID[example]


def test_offline_batch() -> None:
    said = output("offline_batch.py")
    assert "'12 + 30 = 42'" in said and "'apple, cherry, pear'" in said
    assert said.count("(stop)") == 4 and "0 requests are left" in said


def test_two_nodes() -> None:
    assert output("two_nodes.py") == "12 + 30 = 42\n"


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SAID, "offline_batch.py", "two_nodes.py"}
