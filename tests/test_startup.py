"""The bench of the start-up runs; its figures are for BENCHMARKS.md, not for a test to judge."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import startup


def test_the_bench_measures_every_command() -> None:
    measured = startup.measure(rounds=1)
    assert [row.case.name for row in measured] == [case.name for case in startup.CASES]
    assert all(row.case.name in startup.table(measured) for row in measured)
