"""Owns the words for how far a run is. Pure."""

from __future__ import annotations

from launcher import output
from launcher.records import Progress


def words(kind: str, known: Progress) -> str:
    """Return the progress of a run of that kind for people; empty if nothing is known."""
    parts = []
    if kind == "infer":
        parts.append(f"{known.pictures} of {known.asked} pictures")
    elif known.step is not None:
        parts.append(f"step {known.step} of {known.steps}")
    if known.loss is not None:
        parts.append(f"loss {known.loss:.4g}")
    if known.images_per_second is not None:
        parts.append(f"{known.images_per_second:.3g} img/s")
    if known.seconds_left is not None:
        parts.append(f"about {output.duration(known.seconds_left)} left")
    return ", ".join(parts)
