"""Owns the words for how far a run is. Pure."""

from __future__ import annotations

from launcher import output
from launcher.records import Progress

SHOWN = 20
"""Lines that are named; a terminal has no room for more."""


def words(kind: str, known: Progress) -> str:
    """Return the progress of a run of that kind for people; empty if nothing is known."""
    parts = []
    if kind == "infer":
        parts.append(f"{known.pictures} of {known.asked} pictures")
        if known.failed:
            parts.append(f"{len(known.failed)} failed: lines {_some(known.failed)}")
    elif known.step is not None:
        parts.append(f"step {known.step} of {known.steps}")
    if known.loss is not None:
        parts.append(f"loss {known.loss:.4g}")
    if known.images_per_second is not None:
        parts.append(f"{known.images_per_second:.3g} img/s")
    parts += [f"{name} {pace:.3g} s/step" for name, pace in known.seconds_per_step.items()]
    if known.seconds_left is not None:
        parts.append(f"about {output.duration(known.seconds_left)} left")
    return ", ".join(parts)


def _some(lines: tuple[int, ...]) -> str:
    """Return the first lines, each once."""
    each = list(dict.fromkeys(map(str, lines)))
    more = f" and {len(each) - SHOWN} more" if len(each) > SHOWN else ""
    return " ".join(each[:SHOWN]) + more
