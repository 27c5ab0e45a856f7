"""What a name means, and that a model which cannot be served costs no download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remuda.config.arguments import ENGINE_FLAGS
from remuda.config.parser import options_from_keywords
from remuda.hub.source import HubOptions, find_model
from remuda.launch.resolve import engine_config
from remuda.models.llama4.tiny import maverick_config
from remuda.protocol.errors import ConfigError
from tests.hub.standin import Hub, Repo


def test_the_demo_model_has_a_name_and_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    demo = find_model(None).directory
    assert (demo / "model.safetensors.index.json").is_file()
    assert find_model("remuda-demo").directory == demo
    (tmp_path / "remuda-demo").mkdir()
    (tmp_path / "remuda-demo" / "config.json").touch()
    assert find_model("remuda-demo").directory == Path("remuda-demo")  # a directory goes first
    assert find_model(None).directory == demo


def test_a_directory_goes_before_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    with pytest.raises(ConfigError, match="org/model holds no config"):
        find_model("org/model")
    (tmp_path / "org" / "model" / "config.json").touch()
    assert find_model("org/model").directory == Path("org/model")


@pytest.mark.parametrize("name", ["./no/model", "../model", "/no/model", "model", "a/b/c", "~/model"])
def test_a_path_is_never_asked_of_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there is no directory"):
        find_model(name)


def test_options_of_the_hub_are_refused_where_they_mean_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    for model in (str(tmp_path), None):
        with pytest.raises(ConfigError, match="--download-dir is for repositories of the Hugging Face Hub"):
            find_model(model, HubOptions(download_dir="/tmp"))
    with pytest.raises(ConfigError, match="--revision is for repositories"):
        find_model("remuda-demo", HubOptions(revision="main"))


def refused(hub: Hub, tmp_path: Path, config: dict[str, Any], **keywords: Any) -> str:
    """The refusal of a repository of which nothing but the description may have been fetched."""
    hub.repos["org/model"] = Repo({"config.json": json.dumps(config).encode(), "model.safetensors": b"0" * 5000})
    options = options_from_keywords(ENGINE_FLAGS, keywords | {"download_dir": str(tmp_path)})
    with pytest.raises(ConfigError) as caught:
        engine_config(options | {"model": "org/model"})
    assert [request.rsplit("/", 1)[1] for request in hub.requests] == ["main", "config.json"]
    return caught.value.message


def test_an_unknown_architecture_is_refused_before_its_weights_come(hub: Hub, tmp_path: Path) -> None:
    assert "'MambaForCausalLM' is not supported" in refused(hub, tmp_path, {"architectures": ["MambaForCausalLM"]})


def test_an_impossible_layout_is_refused_before_the_weights_come(hub: Hub, tmp_path: Path) -> None:
    config = maverick_config({}, {})
    assert "--tensor-parallel-size 3" in refused(hub, tmp_path, config, tensor_parallel_size=3)


def test_what_does_not_fit_is_refused_before_the_weights_come(hub: Hub, tmp_path: Path) -> None:
    config = maverick_config({"hidden_size": 1 << 16, "vocab_size": 1 << 24}, {})
    assert "GiB" in refused(hub, tmp_path, config)


def test_random_weights_need_no_download_but_the_tokenizer(hub: Hub, tmp_path: Path) -> None:
    config = json.dumps(maverick_config({}, {})).encode()
    hub.repos["org/model"] = Repo({"config.json": config, "tokenizer.json": b"{}", "model.safetensors": b"0" * 5000})
    options = options_from_keywords(ENGINE_FLAGS, {"download_dir": str(tmp_path), "load_format": "dummy"})
    engine_config(options | {"model": "org/model"})
    assert hub.asked("tokenizer.json") and not hub.asked("model.safetensors")
