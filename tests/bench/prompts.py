"""Measures `submit infer --dry-run` of a prompt file of 100,000 lines: time and memory.

    python tests/bench/prompts.py [--lines 100000] [--rounds 5]

The file is written both ways, as text and as JSON lines with three settings each. Bytecode is
cached in a folder of its own, as it is where a package was installed by pip.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MOST_SECONDS, MOST_MIB = 3.0, 200
_MAIN = "import sys; from launcher.cli import main; sys.exit(main())"
_ARGUMENTS = (
    "submit", "infer", "--backend", "local", "--dry-run",
    "--prompts",
)  # fmt: skip
_PROMPT = "a portrait of pirate number {}, in the style of an old sea chart, with ships behind it"


def write(folder: Path, lines: int) -> list[Path]:
    """Write both files."""
    prompts = [_PROMPT.format(number) for number in range(lines)]
    text, rows = folder / "prompts.txt", folder / "prompts.jsonl"
    text.write_text("".join(f"{prompt}\n" for prompt in prompts))
    rows.write_text(
        "".join(
            json.dumps({"prompt": p, "seed": n, "steps": 30, "negative": "blurry"}) + "\n"
            for n, p in enumerate(prompts)
        )
    )
    return [text, rows]


def measure(path: Path, folder: Path) -> tuple[float, float]:
    """Return seconds and MiB of the largest resident set of one dry run."""
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    command = [sys.executable, "-c", _MAIN, *_ARGUMENTS, str(path), "--store", str(folder / "s")]
    began = time.monotonic()
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    out, err = process.stdout.read(), process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    assert os.waitstatus_to_exitcode(status) == 0, err.decode()
    assert b"cache/prompts/" in out
    return seconds, used.ru_maxrss / 1024


def main() -> int:
    """Measure, print, and end with 1 if a bar is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    missed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in write(folder, given.lines):
            measure(path, folder)  # compiles the bytecode
            found = [measure(path, folder) for _ in range(given.rounds)]
            seconds = statistics.median(s for s, _ in found)
            mib = max(m for _, m in found)
            missed = missed or seconds > MOST_SECONDS or mib > MOST_MIB
            size = path.stat().st_size / 2**20
            print(f"{path.name}: {given.lines:,} lines, {size:.1f} MiB: {seconds:.2f} s "
                  f"(<= {MOST_SECONDS:g}), {mib:.0f} MiB (<= {MOST_MIB})")  # fmt: skip
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
