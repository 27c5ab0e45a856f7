"""A failure is told at once: a run on borrowed cards may be cut off before its summary."""

from __future__ import annotations

import sys

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        print(f"\n{report.longreprtext[-4000:]}", file=sys.__stderr__, flush=True)
    if report.when == "call":
        print(f"  {report.duration:.1f} s", file=sys.__stderr__, flush=True)
