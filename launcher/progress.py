"""Owns the words for how far a run is. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from launcher import output
from launcher.records import Progress

WHOLE, INNER = ("start", "compile", "painting"), ("text", "denoise", "decode", "waiting")
BESIDE = ("encode", "upload")
"""Parts of the time of a run of pictures (jobs.verdict)."""
SHOWN = 20
"""Lines that are named; a terminal has no room for more."""


def words(kind: str, known: Progress, *, brief: bool = False) -> str:
    """Return the progress of a run of that kind for people; empty if nothing is known.

    Briefly, for a table of runs: without where the time went.
    """
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
    if not brief:
        parts += [f"{name} {pace:.3g} s/step" for name, pace in known.seconds_per_step.items()]
    if known.seconds_by_part and not brief:
        parts.append(_times(known.seconds_by_part))
    if known.seconds_left is not None:
        parts.append(f"about {output.duration(known.seconds_left)} left")
    return ", ".join(parts)


def _times(seconds: Mapping[str, float]) -> str:
    """Return where the time went: what comes one after another, and what goes on beside it."""
    told = {name: f"{name} {seconds[name]:.3g}" for name in seconds}
    whole, inner, beside = (
        [told[name] for name in names if name in told] for names in (WHOLE, INNER, BESIDE)
    )
    more = f" ({', '.join(inner)}; beside it {', '.join(beside)})" if inner and beside else ""
    return f"seconds: {', '.join(whole)}{more}"


def _some(lines: tuple[int, ...]) -> str:
    """Return the first lines, each once."""
    each = list(dict.fromkeys(map(str, lines)))
    more = f" and {len(each) - SHOWN} more" if len(each) > SHOWN else ""
    return " ".join(each[:SHOWN]) + more
