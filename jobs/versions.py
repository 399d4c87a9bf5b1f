"""Owns which versions of software a run's numbers come from.

Must not import what it asks after: MindSpore takes seconds.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable
from pathlib import Path

from jobs import __version__

CANN_FILES = (
    Path("/usr/local/Ascend/ascend-toolkit/latest/version.cfg"),
    Path("/usr/local/Ascend/cann/version.cfg"),
)


def of(packages: Iterable[str]) -> dict[str, str]:
    """Return package -> installed version.

    Raises:
        importlib.metadata.PackageNotFoundError: one is not installed.
    """
    return {name: importlib.metadata.version(name) for name in packages}


def all_there() -> dict[str, str]:
    """Return name -> version of all that decides a result; absent parts are left out."""
    found = {"jobs": __version__}
    for package in ("mindspore", "mindone"):
        try:
            found |= of([package])
        except importlib.metadata.PackageNotFoundError:
            continue
    for path in CANN_FILES:
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            numbers = re.findall(r"\[([^\]]+)\]", text)
            found |= {"cann": numbers[-1]} if numbers else {}
            break
    return found
