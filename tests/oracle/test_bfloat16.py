"""bfloat16 through the native kernels, within the kit's limits: near ties may flip, nothing else."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tests.oracle import kit
from tests.oracle.compare import answers, divergences, engine_of, judge
from tests.oracle.matrix import Case

# Where this processor cannot run the native kernels the same limits hold for the torch path.
NATIVE = "require" if "amx_bf16" in Path("/proc/cpuinfo").read_text() and platform.machine() == "x86_64" else "off"

LAYOUTS = (
    Case("maverick-tiny"),
    Case("maverick-tiny", tp=2, pp=2, chunk_tokens=64),
    Case("scout-tiny", chunk_tokens=64),
    Case("scout-tiny", tp=4, ep=True),
    Case("llama3-tiny"),
)
FP8_LAYOUTS = (Case("maverick-tiny-fp8"), Case("scout-tiny-fp8", tp=2, pp=2), Case("maverick-tiny-fp8", tp=2, ep=True))


@pytest.mark.parametrize("case", LAYOUTS, ids=str)
def test_bfloat16_diverges_only_at_near_ties(case: Case) -> None:
    expected = kit.reference(case.preset)
    with engine_of(case, "bfloat16", native_kernels=NATIVE) as llm:
        got = answers(llm, case.preset)
    leads = divergences(got, expected)
    verdict = judge(got, expected)
    assert max(leads, default=0.0) < 0.5
    assert sum(lead >= 0.3 for lead in leads) <= max(1, 0.05 * len(expected))
    assert verdict.mean <= 0.10
    assert verdict.p99 <= 0.4


@pytest.mark.parametrize("case", FP8_LAYOUTS, ids=str)
def test_fp8_in_bfloat16_is_near_exact_dequantization(case: Case) -> None:
    expected = kit.reference(case.preset)
    with engine_of(case, "bfloat16", native_kernels=NATIVE) as llm:
        got = answers(llm, case.preset)
    assert max(divergences(got, expected), default=0.0) < 0.8
    assert judge(got, expected).mean <= 0.15
