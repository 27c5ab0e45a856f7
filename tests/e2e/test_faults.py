"""Kill things under a serving replica and see what the client and the operator see."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path


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
