"""Every layout, chunk size and preset against the oracle (an hour on two idle cores).

    python -m tests.oracle.full_matrix [PRESET...]

Beside other work set OMP_WAIT_POLICY=passive, else threads that wait take the cores from those that compute.
"""

from __future__ import annotations

import sys
import time
import traceback

from tests.oracle import kit
from tests.oracle.compare import answers, engine_of, faults, judge
from tests.oracle.matrix import Case, full_product


def run(case: Case) -> tuple[list[str], float]:
    """What is wrong, and the largest difference of log-probabilities; the second round has a warm prefix cache."""
    expected = kit.reference(case.preset)
    with engine_of(case) as llm:
        verdicts = [judge(answers(llm, case.preset), expected) for _ in range(2)]
        stats = llm.stats()
    return faults(case, verdicts, stats), max(v.largest for v in verdicts)


def main(wanted: list[str]) -> int:
    failed = count = 0
    for case in full_product():
        if wanted and case.preset not in wanted:
            continue
        start = time.monotonic()
        try:
            wrong, largest = run(case)
        except Exception:  # the other cases still have something to say
            wrong, largest = [traceback.format_exc()], float("nan")
        count += 1
        failed += bool(wrong)
        verdict = "WRONG" if wrong else "ok"
        print(f"{case!s:45} {verdict} max {largest:.1e} {time.monotonic() - start:.1f} s", flush=True)
        for line in wrong:
            print("   ", line, flush=True)
    print(f"{count - failed} of {count} cases equal to the oracle")
    return failed > 0 or count == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
