"""What `--trace-dir` writes of a runner for GPUs, with the processor in the place of one."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from remuda.protocol.step import StepPlan
from remuda.worker import worker as worker_module
from tests.worker.fakes import engine_config, model_config
from tests.worker.host_device import OnStandIn
from tests.worker.runners import make_workers, overlapped, run_all
from tests.worker.test_worker import admit


def test_every_rank_tells_when_it_worked_on_which_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "make_runner", OnStandIn)
    config = msgspec.structs.replace(engine_config(model_config("FFF"), (1, 2)), trace_dir=str(tmp_path / "new"))
    plans = [StepPlan(0, [0], [5], new=[admit(0, [3, 1, 4, 1, 5], [[1, 2, 3]])])]
    plans += [StepPlan(step, [0], [1]) for step in (1, 2, 3)]
    workers = make_workers(config, OnStandIn)
    run_all(workers, plans, overlapped)
    for worker in workers:
        worker.close()
    first, last = (json.loads((tmp_path / "new" / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert (first["stage"], last["stage"]) == (0, 1)
    for rank in (first, last):
        assert [step["step"] for step in rank["steps"]] == [0, 1, 2, 3]
        assert [step["tokens"] for step in rank["steps"]] == [5, 1, 1, 1]
        assert all(step["begin_s"] <= step["end_s"] for step in rank["steps"])
    for earlier, later in zip(first["steps"], last["steps"], strict=True):
        assert earlier["begin_s"] < later["begin_s"]  # which waits for its rows
    for before, after in zip(last["steps"], first["steps"][1:], strict=False):
        assert before["begin_s"] < after["begin_s"]  # the one sequence's token has to come back
