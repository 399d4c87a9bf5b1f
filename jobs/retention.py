"""Owns which checkpoints of a run may go, and their removal; what is pinned stays.

The decision is pure. Removal takes the marker first, so that a reader never trusts half a set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jobs import commits, layout
from jobs.stores import Store


def doomed(
    steps: Sequence[int], *, keep_last: int, keep_every: int = 0, pinned: Iterable[int] = ()
) -> list[int]:
    """Return the committed steps that retention removes, ascending; never the newest.

    Args:
        steps: the committed steps.
        keep_last: how many of the newest stay; 0 keeps all.
        keep_every: steps that are a multiple of it stay; 0 means none for that reason.
        pinned: steps that stay whatever else.
    """
    ordered = sorted(set(steps))
    if keep_last < 1:
        return []
    kept = {*ordered[-keep_last:], *pinned}
    return [
        step for step in ordered if step not in kept and not (keep_every and step % keep_every == 0)
    ]


def pinned(store: Store, run: str) -> set[int]:
    """Return the steps of the run that are pinned."""
    suffix = f"/{layout.PINNED}"
    steps = (
        layout.step_of(entry.key.removesuffix(suffix))
        for entry in store.list(layout.key(run, layout.CHECKPOINTS, ""))
        if entry.key.endswith(suffix)
    )
    return {step for step in steps if step is not None}


def pin(store: Store, run: str, step: int, *, on: bool) -> None:
    """Keep a committed step from retention, or leave it to it again.

    Raises:
        FileNotFoundError: the step is not committed.
    """
    prefix = checkpoint(run, step)
    if not commits.is_committed(store, prefix):
        raise FileNotFoundError(prefix)
    if on:
        store.write(f"{prefix}/{layout.PINNED}", b"")
    else:
        store.delete(f"{prefix}/{layout.PINNED}")


def remove(store: Store, prefix: str) -> None:
    """Remove a set: its marker first, then everything else of it."""
    store.delete(f"{prefix}/{layout.COMMITTED}")
    for entry in list(store.list(f"{prefix}/")):
        store.delete(entry.key)


def incomplete(store: Store, run: str, before: float) -> list[str]:
    """Return the prefixes of checkpoints without marker that nobody has touched since a time.

    Args:
        store: where.
        run: whose.
        before: in seconds since the epoch; a set whose newest object is younger may be being
            written.
    """
    newest: dict[str, float] = {}
    whole: set[str] = set()
    for entry in store.list(layout.key(run, layout.CHECKPOINTS, "")):
        step = layout.step_of("/".join(entry.key.split("/")[:3]))
        if step is None:
            continue
        prefix = checkpoint(run, step)
        newest[prefix] = max(newest.get(prefix, 0.0), entry.modified)
        if entry.key == f"{prefix}/{layout.COMMITTED}":
            whole.add(prefix)
    return [prefix for prefix, when in newest.items() if prefix not in whole and when < before]


def checkpoint(run: str, step: int) -> str:
    """Return the prefix of a checkpoint."""
    return layout.key(run, layout.CHECKPOINTS, layout.step_name(step))
