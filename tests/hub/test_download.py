"""Downloads: which files, how they survive breaks, and every refusal one clear message."""

from __future__ import annotations

import errno
import json
import shutil
import socket
import threading
from collections import namedtuple
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download, try_to_load_from_cache

from remuda.hub.download import PartialFile
from remuda.hub.source import HubOptions, ModelSource, find_model
from remuda.protocol.errors import ConfigError
from tests.hub.standin import COMMIT, Hub, Repo

INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
WEIGHT = bytes(range(256)) * 64
NAME = "org/model"


def files(**more: bytes) -> dict[str, bytes]:
    return {
        "config.json": b"{}",
        "tokenizer.json": b'{"a": 1}',
        "model.safetensors.index.json": INDEX,
        "model-1.safetensors": WEIGHT,
        "model-2.safetensors": WEIGHT[::-1],
        **more,
    }


def find(cache: Path, **options: str) -> ModelSource:
    return find_model(NAME, HubOptions(download_dir=str(cache), **options))


def fetch(cache: Path, **options: str) -> Path:
    source = find(cache, **options)
    source.complete()
    return source.directory


def refusal(cache: Path, **options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        fetch(cache, **options)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_only_what_serving_needs_is_downloaded_and_the_cache_is_huggingface_hubs(hub: Hub, tmp_path: Path) -> None:
    junk = {"original/consolidated.00.pth": b"x", "pytorch_model.bin": b"x", "consolidated.safetensors": b"x"}
    hub.repos[NAME] = Repo(files(**{"chat_template.jinja": b"{{ 1 }}", "README.md": b"x"}) | junk)
    directory = fetch(tmp_path)
    got = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert got == files(**{"chat_template.jinja": b"{{ 1 }}"})
    for name in got:
        assert try_to_load_from_cache(NAME, name, cache_dir=tmp_path) == str(directory / name)


def test_the_model_is_described_before_anything_large_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    hub.repos[NAME] = Repo(files(**{"generation_config.json": b"{}", "preprocessor_config.json": b"{}"}))
    source = find(tmp_path)
    assert {path.name for path in source.directory.iterdir()} == {
        "config.json", "generation_config.json", "preprocessor_config.json", "model.safetensors.index.json",
    }  # fmt: skip
    assert not hub.asked("model-1") and not hub.asked("tokenizer")
    source.complete_tokenizer()
    assert (source.directory / "tokenizer.json").is_file() and not hub.asked("model-1")


def test_what_is_there_is_not_asked_for_again(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[NAME] = Repo(files())
    directory = fetch(tmp_path)
    hub.requests.clear()
    assert fetch(tmp_path) == directory
    assert [request.split("/")[1] for request in hub.requests] == ["api"]
    hub.requests.clear()
    assert fetch(tmp_path, revision=COMMIT) == directory
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(tmp_path) == directory
    assert not hub.requests


def test_a_new_commit_brings_only_what_changed(hub: Hub, tmp_path: Path) -> None:
    hub.repos[NAME] = Repo(files())
    fetch(tmp_path)
    hub.requests.clear()
    hub.repos[NAME] = Repo(files(**{"tokenizer.json": b'{"a": 2}'}), commits={"main": "6b" * 20})
    assert fetch(tmp_path).name == "6b" * 20
    assert [request.rsplit("/", 1)[1] for request in hub.requests[1:]] == ["tokenizer.json"]


def test_a_branch_and_a_commit_are_revisions(hub: Hub, tmp_path: Path) -> None:
    hub.repos[NAME] = Repo(files(), commits={"main": COMMIT, "dev/x": "7c" * 20})
    hub.repos[NAME].commits["dev%2Fx"] = "7c" * 20
    assert fetch(tmp_path, revision="dev/x").name == "7c" * 20
    assert fetch(tmp_path, revision=COMMIT).name == COMMIT


def test_a_broken_connection_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    large = b"0123456789abcdef" * (1 << 20)  # beyond the 10 MiB in which bytes are passed on
    hub.repos[NAME] = Repo(files(**{"model-1.safetensors": large}))
    hub.cut_after["model-1.safetensors"] = 12 << 20
    directory = fetch(tmp_path)
    assert (directory / "model-1.safetensors").read_bytes() == large
    assert hub.asked("model-1") == [
        f"GET /cdn/{NAME}/model-1.safetensors{part}" for part in ("", f" bytes={10 << 20}-")
    ]


def test_a_later_run_takes_up_what_an_earlier_one_left(hub: Hub, tmp_path: Path) -> None:
    hub.repos[NAME] = Repo(files())
    fetch(tmp_path)
    (blob,) = [path for path in tmp_path.rglob("blobs/*") if path.read_bytes() == WEIGHT]
    blob.rename(blob.with_name(blob.name + ".incomplete")).write_bytes(WEIGHT[:5000])
    hub.requests.clear()
    assert (fetch(tmp_path) / "model-1.safetensors").read_bytes() == WEIGHT
    assert [request.split()[-1] for request in hub.asked("model-1")] == ["bytes=5000-"]


def test_damaged_bytes_are_thrown_away(hub: Hub, tmp_path: Path) -> None:
    hub.repos[NAME] = Repo(files())
    hub.corrupt.add("model-2.safetensors")
    assert "model-2.safetensors of org/model came with a wrong checksum" in refusal(tmp_path)
    hub.corrupt.clear()
    assert (fetch(tmp_path) / "model-2.safetensors").read_bytes() == WEIGHT[::-1]


def test_a_file_of_another_size_than_promised(hub: Hub, tmp_path: Path) -> None:
    hub.repos[NAME] = Repo(files())
    hub.short.add("model-2.safetensors")
    assert "did not come whole (Consistency check failed" in refusal(tmp_path)


def test_two_at_once_share_a_cache(hub: Hub, tmp_path: Path) -> None:
    hub.repos[NAME] = Repo(files())
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all((path / "model-1.safetensors").read_bytes() == WEIGHT for path in found)
    assert len(hub.asked("model-1")) == 1


def test_gated_and_private_repositories_say_what_to_do(hub: Hub, tmp_path: Path) -> None:
    hub.repos[NAME] = Repo(files(), gated=True)
    assert f"org/model is gated: accept its conditions at {hub.url}/org/model, then set HF_TOKEN" in refusal(tmp_path)
    assert "this token has no access: ask for it at" in refusal(tmp_path, hf_token="hf_other")
    hub.repos[NAME].private = True
    for options in ({}, {"hf_token": "hf_other"}):
        assert f"nor a repository at {hub.url} that you may see" in refusal(tmp_path, **options)
    assert not list(tmp_path.rglob("snapshots/*/*"))
    assert fetch(tmp_path, hf_token="hf_good").is_dir()


def test_what_does_not_exist(hub: Hub, tmp_path: Path) -> None:
    assert "neither a directory here nor a repository" in refusal(tmp_path)
    hub.repos[NAME] = Repo(files())
    assert "org/model has no revision 'v2'" in refusal(tmp_path, revision="v2")
    hub.repos[NAME] = Repo({"model.gguf": b"x"})
    assert "org/model has no config.json" in refusal(tmp_path)
    hub.repos[NAME] = Repo({"config.json": b"{}", "pytorch_model.bin": b"x"})
    assert "choose a repository with weights in safetensors" in refusal(tmp_path)


@pytest.mark.parametrize(("status", "expected"), [(503, "answers 503"), (429, "try later"), (401, "refuses the token")])
def test_a_hub_in_trouble_leaves_what_is_cached(hub: Hub, tmp_path: Path, status: int, expected: str) -> None:
    hub.repos[NAME] = Repo(files())
    hub.status = status
    if status != 401:  # without a code, 401 is also what the hub says of a repository that is not there
        assert expected in refusal(tmp_path)
    hub.status = None
    directory = fetch(tmp_path)
    hub.status = status
    assert fetch(tmp_path) == directory


def test_no_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    hub.repos[NAME] = Repo(files())
    directory = fetch(tmp_path)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert "cannot be reached (" in refusal(tmp_path / "other")
        assert fetch(tmp_path) == directory
    assert f"the copy in the cache is used: {directory}" in capsys.readouterr().err


def test_a_hub_that_stops_answering(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    hub.repos[NAME] = Repo(files())
    hub.stall.add("model-1.safetensors")
    assert f"{hub.url} does not answer in time: check the network" in refusal(tmp_path)


def test_offline_without_a_complete_copy(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert f"org/model is not complete in the cache at {tmp_path}, and HF_HUB_OFFLINE is set" in refusal(tmp_path)


def test_the_disk_is_asked_before_the_hub_is(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[NAME] = Repo(files())
    source = find(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 1 << 20))
    with pytest.raises(ConfigError, match=rf"MiB are to be downloaded, but 1.0 MiB are free at {tmp_path}"):
        source.complete()
    assert not hub.asked("model-1")


def test_a_disk_that_fills_on_the_way(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[NAME] = Repo(files())
    source = find(tmp_path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PartialFile, "write", full)
    with pytest.raises(ConfigError, match=f"no space left at {tmp_path}: free some and run the same command again"):
        source.complete()


def test_a_place_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    hub.repos[NAME] = Repo(files())
    (tmp_path / "file").write_text("")
    assert f"cannot write to {tmp_path}/file" in refusal(tmp_path / "file")
