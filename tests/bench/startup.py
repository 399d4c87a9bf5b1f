"""Measures the launcher's start-up: `--help`, completion and `submit --dry-run`.

    python tests/bench/startup.py [--rounds 15]

Each round runs every command once, one after the other, so that a busy machine slows all of them
alike; what counts is the median of each round's ratio to `python -c 'import typer'`. Bytecode is
cached in a folder of its own, as it is where a package was installed by pip.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BASE = "import typer"
MOST_OF_BASE = 1.5
DRY_RUN_SECONDS = 1.0
_MAIN = "import sys; from launcher.cli import main; sys.exit(main())"
_DRY_RUN = (
    "submit train --npus 8 --dry-run --image registry.example/jobs:1 --store s3://bucket/runs"
)
_COMPLETION = {
    "_LAUNCHER_COMPLETE": "complete_bash",
    "COMP_WORDS": "launcher sub",
    "COMP_CWORD": "1",
}


@dataclass(frozen=True)
class Case:
    """One command to measure."""

    name: str
    arguments: tuple[str, ...]
    variables: Mapping[str, str]
    limit: str = ""


CASES = (
    Case(BASE, ("-c", "import typer"), {}),
    Case("--help", ("-c", _MAIN, "--help"), {}, f"ratio <= {MOST_OF_BASE}"),
    Case("completion", ("-c", _MAIN), _COMPLETION, f"ratio <= {MOST_OF_BASE}"),
    Case("--dry-run", ("-c", _MAIN, *_DRY_RUN.split()), {}, f"<= {DRY_RUN_SECONDS} s"),
)


@dataclass(frozen=True)
class Measured:
    """Medians of one command."""

    case: Case
    seconds: float
    ratio: float
    """To `import typer` in the same round."""


def measure(rounds: int) -> list[Measured]:
    """Run every case `rounds` times, after once to warm the caches."""
    with tempfile.TemporaryDirectory() as folder:
        seconds: dict[str, list[float]] = {case.name: [] for case in CASES}
        for number in range(rounds + 1):
            for case in CASES:
                took = _run(case, Path(folder))
                if number:
                    seconds[case.name].append(took)
    base = seconds[BASE]
    return [
        Measured(
            case,
            statistics.median(seconds[case.name]),
            statistics.median(a / b for a, b in zip(seconds[case.name], base, strict=True)),
        )
        for case in CASES
    ]


def table(rows: list[Measured]) -> str:
    """Return the medians as a table."""
    lines = [f"{'command':<14}{'seconds':>9}{'ratio':>8}  bar"]
    lines += [
        f"{row.case.name:<14}{row.seconds:>9.3f}{row.ratio:>8.2f}  {row.case.limit}" for row in rows
    ]
    return "\n".join(lines)


def _run(case: Case, folder: Path) -> float:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LAUNCHER_") and name != "PYTHONDONTWRITEBYTECODE"
    }
    environment |= {"PYTHONPYCACHEPREFIX": str(folder / "bytecode"), **case.variables}
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, *case.arguments], env=environment, cwd=folder, check=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    return time.perf_counter() - begin


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    print(table(measure(parser.parse_args().rounds)))
