"""Command lines, YAML files and keywords against the flag tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from remuda.config.arguments import ENGINE_FLAGS, SERVER_FLAGS, UNSUPPORTED
from remuda.config.parser import FlagParser, options_from_keywords
from remuda.protocol.errors import ConfigError


def parser() -> FlagParser:
    made = FlagParser("remuda serve", "", (*SERVER_FLAGS, *ENGINE_FLAGS))
    made.add_argument("model", nargs="?")
    return made


def refused(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parser().read(argv)
    return caught.value.message


def test_vllm_spellings_carry_over() -> None:
    options = parser().read(
        ["m", "-tp", "2", "--pipeline_parallel_size=3", "--max-model-len", "8k", "--no-enable-prefix-caching",
         "--api-key", "a", "b"]
    )  # fmt: skip
    assert options["model"] == "m"
    assert (options["tensor_parallel_size"], options["pipeline_parallel_size"]) == (2, 3)
    assert options["max_model_len"] == 8000
    assert options["enable_prefix_caching"] is False
    assert options["api_key"] == ["a", "b"]


@pytest.mark.parametrize(
    ("typed", "near"),
    [("--tensor-paralel-size", "--tensor-parallel-size"), ("--max-num-seq", "--max-num-seqs"), ("--prot", "--port")],
)
def test_a_mistyped_flag_is_refused_with_the_nearest_one(typed: str, near: str) -> None:
    assert refused(typed, "2") == f"unknown flag {typed}; did you mean {near}?"


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_a_vllm_flag_without_support_is_refused_with_its_reason(name: str) -> None:
    assert name not in parser().flags
    assert refused(f"--{name}", "1") == f"--{name} is not supported: {UNSUPPORTED[name]}"


@pytest.mark.parametrize(
    "argv",
    [
        ["--block-size", "0"],
        ["--max-num-seqs", "many"],
        ["--gpu-memory-utilization", "1.5"],
        ["--gpu-memory-utilization", "nan"],
        ["--kv-cache-memory-bytes", "-4G"],
        ["--port", "70000"],
        ["--scheduling-policy", "random"],
        ["--startup-timeout", "nan"],
        ["--distributed-timeout-seconds", "1e300"],
        ["--shutdown-timeout", "-1"],
        ["--tensor-parallel-size"],
    ],
)
def test_a_value_that_does_not_fit_names_its_flag(argv: list[str]) -> None:
    assert argv[0] in refused(*argv)


@pytest.mark.parametrize(("text", "size"), [("512M", 512 << 20), ("1.5GiB", 3 << 29), ("4096", 4096), ("2g", 2 << 30)])
def test_sizes_have_units(text: str, size: int) -> None:
    assert parser().read(["--kv-cache-memory-bytes", text])["kv_cache_memory_bytes"] == size


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.yaml",
        "model: from-file\nmax-num-seqs: 7\nblock_size: 32\nenable-prefix-caching: false\napi-key: [x, y]\n"
        "pipeline-layer-partition: [3, 5]\n",
    )
    options = parser().read(["--max-num-seqs", "9", "--config", str(file)])
    assert (options["model"], options["max_num_seqs"], options["block_size"]) == ("from-file", 9, 32)
    assert options["enable_prefix_caching"] is False
    assert options["api_key"] == ["x", "y"]
    assert options["pipeline_layer_partition"] == "3,5"
    assert parser().read(["mine", f"--config={file}"])["model"] == "mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max-num-sequences: 7", "did you mean --max-num-seqs"),
        ("trust-remote-code: true", "--trust-remote-code is not supported"),
        ("- a\n- b", "must be a mapping"),
        ("a: [", "is no YAML"),
        ("enable-prefix-caching: 3", "must be true or false"),
        ("port: {a: 1}", "port cannot be"),
        ("config: other.yaml", "one file cannot name another"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refused("--config", str(write(tmp_path / "c.yaml", text)))


def test_a_missing_file_is_refused() -> None:
    assert "nowhere.yaml" in refused("--config", "nowhere.yaml")
    assert "--config needs a file" in refused("--config")


def test_a_model_is_not_taken_for_a_second_key(tmp_path: Path) -> None:
    assert "put the model before --api-key" in refused("--port", "1", "--api-key", "secret", str(tmp_path))
    assert parser().read([str(tmp_path), "--api-key", "secret", "more"])["api_key"] == ["secret", "more"]
    assert parser().read(["--api-key", "secret", "--port", "1", str(tmp_path)])["model"] == str(tmp_path)
    assert parser().read(["--api-key=secret", str(tmp_path)])["model"] == str(tmp_path)


def test_keywords_are_the_same_flags() -> None:
    options = options_from_keywords(
        ENGINE_FLAGS, {"kv_cache_memory_bytes": "1G", "dtype": "float32", "max_model_len": 64}
    )
    assert (options["kv_cache_memory_bytes"], options["dtype"], options["max_model_len"]) == (1 << 30, "float32", 64)
    assert options["max_num_seqs"] == 256
    for keywords, expected in (
        ({"max_num_sequences": 3}, "did you mean max_num_seqs"),
        ({"trust_remote_code": True}, "never runs code"),
        ({"dtype": "int8"}, "must be one of"),
        ({"block_size": 0}, "block_size"),
    ):
        with pytest.raises(ConfigError, match=expected):
            options_from_keywords(ENGINE_FLAGS, keywords)


def test_help_shows_every_flag_with_its_group() -> None:
    text = parser().format_help()
    for group in (*SERVER_FLAGS, *ENGINE_FLAGS):
        assert f"\n{group.title}:" in text
        assert all(f"--{flag.name}" in text for flag in group.flags)
    assert max(map(len, text.splitlines())) <= 120
