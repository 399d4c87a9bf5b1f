"""The bench of the start-up runs, and what it compares with `import typer` holds its bars."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import startup


@pytest.fixture(scope="module")
def measured():
    return {row.case.name: row for row in startup.measure(rounds=5)}


@pytest.mark.parametrize("name", ["--help", "completion"])
def test_help_and_completion_cost_little_more_than_typer(measured, name):
    assert measured[name].ratio <= startup.MOST_OF_BASE, startup.table(list(measured.values()))


def test_a_dry_run_is_measured_too(measured):
    # Its bar is in seconds of an idle machine; CI reads it from the table.
    assert measured["--dry-run"].seconds > measured[startup.BASE].seconds
