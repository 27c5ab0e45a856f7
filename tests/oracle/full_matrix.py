"""Every layout, chunk size and preset against the oracle, in minutes: `python -m tests.oracle.full_matrix [FILTER]`."""

from __future__ import annotations

import sys
import time

from tests.oracle import kit
from tests.oracle.compare import answers, engine_of, judge
from tests.oracle.matrix import full_product


def main(wanted: str = "") -> int:
    failed = count = 0
    for case in full_product():
        if wanted not in str(case):
            continue
        start = time.monotonic()
        with engine_of(case) as llm:
            verdicts = [judge(answers(llm, case.preset), kit.reference(case.preset)) for _ in range(2)]
        wrong = [line for v in verdicts for line in v.wrong]
        largest = max(v.largest for v in verdicts)
        count += 1
        failed += bool(wrong) or largest > 2e-3
        print(
            f"{case!s:45} {'ok' if not wrong else 'WRONG'} max {largest:.1e} {time.monotonic() - start:.1f} s",
            flush=True,
        )
        for line in wrong:
            print("   ", line)
    print(f"{count - failed} of {count} cases equal to the oracle")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
