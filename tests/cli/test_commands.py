"""The commands as a user types them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remuda.cli.bench.datasets import from_file
from remuda.cli.bench.metrics import RequestRecord, parse_goodput, percentile, summarize
from remuda.cli.chat import data_url
from remuda.protocol.errors import ConfigError
from tests.e2e.server import serve
from tests.processes import descendants


def remuda(*argv: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "remuda", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, **kwargs)


def test_help_and_version_name_every_command() -> None:
    text = remuda("--help").stdout
    assert all(f"  {name} " in text for name in ("serve", "chat", "generate", "bench", "make-tiny", "native"))
    assert remuda("--version").stdout.startswith("remuda 0.")


@pytest.mark.parametrize(
    "command", ["serve", "chat", "generate", "make-tiny", "native", "bench", "bench serve", "bench latency"]
)
def test_every_command_explains_itself_without_torch(command: str) -> None:
    run = f"try: run({[*command.split(), '--help']!r})\nexcept SystemExit: pass\n"
    code = f"import sys; from remuda.cli.main import run\n{run}sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: remuda")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["server"], "did you mean `remuda serve`?"),
        (["serve", "--prot", "1"], "did you mean --port?"),
        (["serve", "/nowhere"], "/nowhere"),
        (["bench", "speed"], "throughput, latency, serve"),
        (["bench", "serve", "--goodput", "speed:3"], "ttft:MS"),
        (["bench", "serve", "--request-rate", "0"], "--request-rate: '0' is not a number above 0"),
        (["bench", "serve", "--burstiness", "nan"], "--burstiness"),
        (["bench", "serve", "--num-warmups", "-1"], "--num-warmups"),
        (["bench", "serve", "--random-range-ratio", "2"], "--random-range-ratio"),
        (
            ["bench", "serve", "--save-result", "--result-filename", "/nowhere/r.json"],
            "cannot write to /nowhere/r.json",
        ),
        (["bench", "serve", "--base-url", "http://127.0.0.1:9"], "cannot reach 127.0.0.1:9"),
        (["chat", "--base-url", "http://127.0.0.1:9"], "no server answers"),
        (["generate"], "no prompt"),
        (["make-tiny", "/proc/self/nowhere"], "cannot write to /proc/self/nowhere"),
        (["make-tiny", __file__], "Not a directory"),
        (["make-tiny"], "say which directory"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(argv: list[str], expected: str) -> None:
    done = remuda(*argv)
    assert done.returncode == 1
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_full_disk_is_one_line(tiny_maverick: Path) -> None:
    command = [sys.executable, "-m", "remuda", "generate", str(tiny_maverick), "--prompt", "a", "--max-tokens", "2",
               "--max-model-len", "64", "--native-kernels", "off"]  # fmt: skip
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode != 0
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr


def test_a_dataset_with_a_senseless_length_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "output_tokens": "many"}\n')
    with pytest.raises(ConfigError, match="output_tokens must be a whole number"):
        from_file(tmp_path / "rows.jsonl", 1, 4, 0)


def test_a_taken_port_fails_before_anything_is_loaded(tiny_maverick: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = remuda("serve", str(tiny_maverick), "--host", "127.0.0.1", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "Choose another --host or --port" in done.stderr.strip().splitlines()[-1]
    assert "handshake" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--ssl-certfile", "/nowhere.pem"], "--ssl-certfile /nowhere.pem cannot be read"),
        (["--ssl-keyfile", __file__], "--ssl-keyfile needs --ssl-certfile"),
        (["--ssl-ca-certs", __file__], "--ssl-ca-certs needs --ssl-certfile"),
        (["--ssl-cert-reqs", "7"], "--ssl-cert-reqs must be 0, 1 or 2"),
        (["--ssl-cert-reqs", "2"], "--ssl-cert-reqs needs --ssl-ca-certs"),
        (["--chat-template", "{% broken"], "--chat-template is not valid Jinja"),
        (["--allowed-local-media-path", "/nowhere"], "--allowed-local-media-path /nowhere is no directory"),
    ],
)
def test_a_server_that_cannot_work_says_so_before_it_has_read_the_weights(
    tiny_maverick: Path, flags: list[str], expected: str
) -> None:
    done = remuda("serve", str(tiny_maverick), "--host", "127.0.0.1", "--port", "0", "--native-kernels", "off", *flags)
    assert done.returncode == 1
    assert expected in done.stderr.strip().splitlines()[-1]
    assert "ready after" not in done.stderr


def test_make_tiny_lists_what_it_can_make() -> None:
    done = remuda("make-tiny", "--list")
    assert done.returncode == 0
    assert {"maverick", "scout-fp8", "llama3"} <= {line.split()[0] for line in done.stdout.splitlines()}


def test_make_tiny_refuses_a_full_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = remuda("make-tiny", str(tmp_path))
    assert (done.returncode, "not empty" in done.stderr) == (1, True)


def test_generate_prints_json(tiny_maverick: Path) -> None:
    done = remuda("generate", str(tiny_maverick), "--prompt", "one", "two", "--max-tokens", "4", "--json",
                  "--ignore-eos",
                  "--max-model-len", "64", "--native-kernels", "off")  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["one", "two"]
    assert all(len(row["token_ids"][0]) == 4 for row in rows)


def test_a_server_is_measured_and_talked_to(tmp_path: Path, tiny_maverick: Path) -> None:
    flags = ["--max-model-len", "512", "--native-kernels", "off", "--served-model-name", "tiny"]
    with serve(tmp_path / "log", str(tiny_maverick), *flags) as server:
        titles = " ".join(proc.title for proc in descendants(server.process.pid))
        assert "remuda: engine" in titles and "remuda: rank 0 tp0 pp0" in titles
        assert "rank 0 (tp0 pp0): layers 0-7" in server.output
        assert f"curl {server.url}/v1/chat/completions" in server.output
        result = tmp_path / "result.json"
        done = remuda(
            "bench", "serve", "--base-url", server.url, "--tokenizer", str(tiny_maverick), "--num-prompts", "6",
            "--max-concurrency", "3", "--random-input-len", "20", "--random-output-len", "8", "--ignore-eos",
            "--goodput", "e2el:60000", "--save-result", "--result-filename", str(result), "--json",
        )  # fmt: skip
        figures = json.loads(done.stdout)
        assert figures == json.loads(result.read_text())
        assert (figures["completed"], figures["total_output_tokens"], figures["model"]) == (6, 48, "tiny")
        assert figures["request_goodput"] == figures["request_throughput"]
        assert 0 < figures["mean_ttft_ms"] <= figures["mean_e2el_ms"]
        script = "Hello\n/reset\n/image nowhere.png\nAgain\n/exit\nnever read\n"
        command = [
            sys.executable,
            "-m",
            "remuda",
            "chat",
            "--base-url",
            server.url,
            "--max-tokens",
            "4",
            "--temperature",
            "0",
        ]
        chat = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60)
        assert chat.returncode == 0, chat.stderr
        assert "nowhere.png" in chat.stdout
        chat_lines = [line for line in chat.stdout.splitlines() if "nowhere" not in line]
        assert len(chat_lines) >= 2


def test_figures_of_known_records() -> None:
    records = [
        RequestRecord(0.0, [0.1, 0.2, 0.3], prompt_tokens=5, output_tokens=3),
        RequestRecord(1.0, [1.3, 1.4], prompt_tokens=7, output_tokens=2),
        RequestRecord(1.0, error="status 500"),
    ]
    figures = summarize(records, duration_s=2.0, goodput_ms=parse_goodput(["ttft:200", "tpot:150"]))
    assert (figures["completed"], figures["failed"]) == (2, 1)
    assert figures["output_throughput"] == 2.5
    assert figures["request_goodput"] == 0.5
    assert figures["mean_ttft_ms"] == pytest.approx(200)
    assert figures["mean_tpot_ms"] == pytest.approx(100)
    assert figures["mean_itl_ms"] == pytest.approx(100)
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5


def test_images_become_data_urls(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG")
    assert data_url(path) == "data:image/png;base64,iVBORw=="
    for bad in (tmp_path / "b.png", tmp_path / "text.txt"):
        with pytest.raises(ConfigError, match=bad.name):
            data_url(bad)
