"""README's requests, pasted as they stand there into a shell or Python, get the answers that README shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.server import serve

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = {
    "Sort these words": "apple, cherry, pear",
    "What is where in the image?": "blue star top left, red circle center, green triangle bottom right",
    "Set a timer": 'a call of `set_timer` with `{"minutes": 25}`',
    "What is 12 + 30?": "12 + 30 = 42",
}


def requests() -> list[tuple[str, str]]:
    """(language, code) of each block that asks the server, without a shell's where its tools are not installed."""
    shell = shutil.which("curl") and shutil.which("base64")
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return [
        (language, code) for language, code in blocks if "localhost:8000" in code and (shell or language == "python")
    ]


def answer(language: str, code: str, port: int) -> str:
    code = code.replace("localhost:8000", f"127.0.0.1:{port}")
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-c", code]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout
    if language == "python":
        return printed
    if printed.startswith("data: "):
        events = [json.loads(line[6:]) for line in printed.splitlines() if line.startswith("data: {")]
        return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    message = json.loads(printed)["choices"][0]["message"]
    if calls := message.get("tool_calls"):
        (function,) = [call["function"] for call in calls]
        return f"a call of `{function['name']}` with `{function['arguments']}`"
    return str(message["content"])


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_requests_are_answered_as_shown(tmp_path: Path, tp: int, pp: int) -> None:
    readme = (ROOT / "README.md").read_text()
    layout = ["--tensor-parallel-size", str(tp), "--pipeline-parallel-size", str(pp)]
    with serve(tmp_path / "log", *layout, "--kv-cache-memory-bytes", "64M", "--native-kernels", "off") as server:
        asked = []
        for language, code in requests():
            question = next(question for question in ANSWERS if question in code)
            assert answer(language, code, server.port) == ANSWERS[question]
            asked.append(question)
    assert asked in (list(ANSWERS), list(ANSWERS)[3:])  # with curl, and without
    assert all(ANSWERS[question] in readme for question in list(ANSWERS)[1:3])
