"""Which executor runs a configuration. No torch until it starts."""

from __future__ import annotations

from remuda.config.engine import EngineConfig
from remuda.engine.ports import Executor
from remuda.executor.inproc import InprocExecutor
from remuda.executor.multiproc import MultiprocExecutor
from remuda.launch.native_adoption import AdoptsNative


def make_executor(config: EngineConfig) -> Executor:
    """The one that `executor_backend` names, whose ranks take the native kernels when those are built."""
    executor = InprocExecutor(config) if config.executor_backend == "inproc" else MultiprocExecutor(config)
    if config.native_kernels == "off" or config.device != "cpu":
        return executor
    return AdoptsNative(executor, required=config.native_kernels == "require")
