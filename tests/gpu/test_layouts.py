"""Engines on GPUs answer as the processor does in float32: every model, in every layout that the cards here allow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda import LLM
from remuda.tiny import make_tiny
from tests.gpu.cases import Case, cases_here, engine_of
from tests.gpu.workloads import Results, Workload, faults


class Processor:
    """Engines of the CPU, one for each model, and what they have answered."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._engines: dict[str, LLM] = {}
        self._answers: dict[tuple[str, Workload], Results] = {}

    def path(self, model: str) -> str | None:
        """Of its checkpoint; None for the embedded one."""
        if model == "demo":
            return None
        path = self._folder / model
        if not path.exists():
            make_tiny(model, path, dtype="float32")
        return str(path)

    def answers(self, model: str, workload: Workload) -> Results:
        if (model, workload) not in self._answers:
            if model not in self._engines:
                self._engines[model] = LLM(
                    self.path(model), device="cpu", dtype="float32", max_model_len=1024,
                    kv_cache_memory_bytes=128 << 20, native_kernels="off",
                )  # fmt: skip
            self._answers[model, workload] = workload(self._engines[model])
        return self._answers[model, workload]

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processor]:
    made = Processor(tmp_path_factory.mktemp("checkpoints"))
    yield made
    made.close()


@pytest.mark.parametrize("case", cases_here(), ids=str)
def test_answers_are_the_processors(case: Case, processor: Processor) -> None:
    wrong: list[str] = []
    with engine_of(case, processor.path(case.model)) as llm:
        for name, workload in case.workloads.items():
            wrong += faults(name, workload(llm), processor.answers(case.model, workload), case.limits)
        stats = llm.stats()
    assert not wrong, "\n" + "\n".join(wrong)
    assert stats.kv_pages_used == 0
    assert (stats.prefix_hits_tokens > 0) is not case.plain
