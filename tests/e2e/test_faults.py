"""Kill things under a serving replica and see what the client and the operator see."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import pytest

from tests.e2e.server import serve
from tests.processes import descendants, wait_until


@pytest.mark.parametrize("victim", ["remuda: rank 1", "remuda: rank 2", "remuda: engine"])
def test_a_killed_process_ends_open_requests_with_503_and_leaves_nothing(
    tmp_path: Path, tiny_maverick: Path, victim: str
) -> None:
    layout = ["--tensor-parallel-size", "2", "--pipeline-parallel-size", "2", "--max-model-len", "2048"]
    errors: list[Exception] = []
    started = threading.Event()

    def long_stream(url: str) -> None:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            try:
                stream = client.completions.create(
                    model="tiny", prompt="Hello", max_tokens=1900, stream=True, extra_body={"ignore_eos": True}
                )
                for _ in stream:
                    started.set()
            except Exception as error:
                errors.append(error)

    with serve(tmp_path / "log", str(tiny_maverick), "--served-model-name", "tiny", *layout) as server:
        family = descendants(server.process.pid)
        client = threading.Thread(target=long_stream, args=(server.url,))
        client.start()
        assert started.wait(60)
        killed_at = time.monotonic()
        next(proc for proc in family if victim in proc.title).kill()
        client.join(10)
        assert not client.is_alive(), "the stream hangs after the fault"
        wait_until(
            lambda: not any(proc.alive() for proc in family), 5 - (time.monotonic() - killed_at), "processes remain"
        )
        assert len(errors) == 1
        if "rank" in victim:
            number = victim.rsplit(" ", 1)[1]
            assert f"rank {number}" in str(errors[0]) and "node 0" in str(errors[0])
        assert not server.healthy()


def test_a_missing_or_broken_checkpoint_is_one_line_and_exit_code_1(tmp_path: Path, tiny_maverick: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_maverick, broken)
    shard = sorted(broken.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1000])
    for path, expected in ((tmp_path / "nowhere", "nowhere"), (broken, shard.name)):
        command = [sys.executable, "-m", "remuda", "serve", str(path), "--port", "0", "--tensor-parallel-size", "2"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert expected in done.stderr
        assert "Traceback" not in done.stderr + done.stdout
