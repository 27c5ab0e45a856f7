from __future__ import annotations

from typing import Any

import pytest

from remuda.worker import simulated
from remuda.worker import worker as worker_module
from tests.worker.host_device import OnStandIn
from tests.worker.runners import BesideHost, NeverDoneWhenAsked, OnCpu, OnDevice


@pytest.fixture(params=[OnCpu, BesideHost, OnDevice, OnStandIn])
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class of runner that workers are made with."""
    monkeypatch.setattr(worker_module, "make_runner", request.param)
    monkeypatch.setattr(simulated, "_Launched", NeverDoneWhenAsked)
    return request.param
