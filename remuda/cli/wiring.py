"""Options -> the objects that run them: the one place where the parts meet. No torch until an executor starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remuda.config.engine import EngineConfig
from remuda.config.huggingface import read_model_config
from remuda.config.locate import cache_home, find_model
from remuda.config.resolve import resolve_engine
from remuda.engine.ports import Executor
from remuda.planner.layout import check_tensor_parallel
from remuda.planner.partition import partition_layers

DEFAULT_MODEL = "remuda-tiny"
_DTYPES = {"float": "float32", "half": "float16"}


def model_directory(name: str | None) -> Path:
    """The checkpoint that `name` means; without a name the default one, made on first use."""
    return find_model(name) if name else default_checkpoint()


def default_checkpoint() -> Path:
    """A tiny random Llama 4 in the cache directory: seeded, so it is the same everywhere."""
    from remuda.cli.make_tiny import make_in_subprocess

    directory = cache_home() / DEFAULT_MODEL
    if not (directory / "config.json").is_file():
        make_in_subprocess(directory)
    return directory


def engine_config(options: Mapping[str, Any]) -> EngineConfig:
    """Read the model's config and resolve everything else against it."""
    directory = model_directory(options["model"])
    dtype = _DTYPES.get(options["dtype"], options["dtype"])
    model = read_model_config(directory, dtype)
    check_tensor_parallel(model, options["tensor_parallel_size"], options["enable_expert_parallel"])
    return resolve_engine(options, model, partition_layers)


def make_executor(config: EngineConfig, backend: str) -> Executor:
    """The executor that `--distributed-executor-backend` names."""
    if backend in ("inproc", "uni"):
        from remuda.executor.inproc import InprocExecutor

        return InprocExecutor(config)
    from remuda.executor.multiproc import MultiprocExecutor

    return MultiprocExecutor(config)
