"""A replica whose engine core lives in the caller's process: what `LLM` drives."""

from __future__ import annotations

from typing import Self

from remuda.config.engine import EngineConfig
from remuda.engine.core import EngineCore
from remuda.launch.executors import make_executor


class LocalReplica:
    """Ranks and the engine core over them. Ranks beyond an in-process one are processes; `stop` ends them all."""

    core: EngineCore

    def __init__(self, config: EngineConfig) -> None:
        self._executor = make_executor(config)
        try:
            self.core = EngineCore(config, self._executor, self._executor.start(lambda progress: None))
        except BaseException:
            self._executor.shutdown()
            raise

    def stop(self) -> None:
        """Idempotent."""
        self.core.close()
        self._executor.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
