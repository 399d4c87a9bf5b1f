"""Owns what a store tells of the runs in it, for runs whose Job or processes are gone.

Must not ask a cluster: whether a run without a result still works is not in its records.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from jobs import layout
from jobs.errors import BY_CODE, PicturesFailed, Stopped
from jobs.stores import Entry, Store
from launcher import output, places, records, storage
from launcher.backends import localrun
from launcher.errors import LauncherError, Misconfigured
from launcher.settings import Settings

READS_AT_ONCE = 8
"""Records that are read side by side; each is one small request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One run of a store; plain values, as --json prints them."""

    run: str
    kind: str
    """Empty: its spec is not there, or damaged."""
    state: str
    """By its result, or by how its newest attempt ended; `unknown` where neither is there."""
    code: int | None
    code_name: str | None
    reason: str
    """What the attempt said of its end."""
    committed: int | None
    """Newest committed step."""
    pictures: int
    """Pictures in the store, validation pictures among them."""
    changed: str
    """Time of its newest object, ISO 8601, UTC."""
    bytes: int
    records: str


@dataclass
class _Sums:
    """What the keys of one run add up to."""

    claimed: bool = False
    committed: int | None = None
    pictures: int = 0
    changed: float = 0.0
    bytes: int = 0
    result: bool = False
    end: bool = False


def runs(store: Store) -> list[Found]:
    """Return the runs of a store, the one that changed last at the end.

    Raises:
        OSError: the store failed.
    """
    sums = {name: row for name, row in _summed(store.list("")).items() if row.claimed}
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        found = list(pool.map(lambda pair: _found(store, *pair), sums.items()))
    return sorted(found, key=lambda row: (row.changed, row.run))


def table(found: Iterable[Found], now: float) -> str:
    """Return the runs as a table.

    Args:
        found: the runs.
        now: in seconds since the epoch, for their ages.
    """
    rows = [
        (
            row.run,
            row.kind or "?",
            row.state,
            _held(row),
            output.size(row.bytes),
            f"{output.duration(now - datetime.fromisoformat(row.changed).timestamp())} ago",
        )
        for row in found
    ]
    return output.table(("RUN", "KIND", "STATE", "HOLDS", "SIZE", "CHANGED"), rows)


def show(settings: Settings, *, as_json: bool) -> None:
    """Print the runs of the store that is set, the one that changed last at the end.

    Raises:
        Forbidden, Unreachable, Misconfigured: the store cannot be asked.
    """
    store = storage.of_target(
        replace(settings.target, store=settings.target.store or places.LOCAL_STORE)
    )
    with storage.asking(store):
        found = [_known_here(settings, store, row) for row in runs(store)]
    if as_json:
        output.as_json([asdict(row) for row in found])
    elif found:
        output.data(table(found, time.time()))
    else:
        output.say(f"no runs in {store.url}")


def _known_here(settings: Settings, store: Store, row: Found) -> Found:
    """Return the row with the state of a run that was submitted on this machine."""
    try:
        files = places.local_files(settings, row.run, store)
        state = localrun.look(files) if files is not None else None
    except LauncherError:  # a stranger's folder of that name, or a damaged one
        return row
    if state is None or row.code is not None:
        return row
    name = None if state.code is None else BY_CODE[state.code].name
    return replace(row, state=state.state, code=state.code, code_name=name)


def _summed(entries: Iterable[Entry]) -> dict[str, _Sums]:
    found: dict[str, _Sums] = {}
    for entry in entries:
        run, _, rest = entry.key.partition("/")
        if not rest or rest.startswith(f"{layout.LOCAL}/"):
            continue  # of this machine, not of the run's records
        row = found.setdefault(run, _Sums())
        row.claimed |= rest in (layout.CLAIM, layout.SPEC)
        row.result |= rest == layout.RESULT
        row.end |= rest == layout.END
        row.pictures += rest.startswith(f"{layout.IMAGES}/")
        row.changed = max(row.changed, entry.modified)
        row.bytes += entry.size
        if rest.startswith(f"{layout.CHECKPOINTS}/") and rest.endswith(f"/{layout.COMMITTED}"):
            step = layout.step_of(rest.removesuffix(f"/{layout.COMMITTED}"))
            if step is not None:
                row.committed = max(step, row.committed or 0)
    return found


def _found(store: Store, run: str, row: _Sums) -> Found:
    try:
        spec = records.document(store, layout.key(run, layout.SPEC)).get("spec")
        result = records.result(store, run) if row.result else {}
        end = records.end(store, run) if row.end else {}
    except Misconfigured as error:  # one damaged record must not hide the other runs
        output.say(f"{run}: {error.text}")
        spec, result, row.result, end = None, {}, False, {}
    code = end.get("code") or None  # without a result nothing has succeeded
    if row.result:
        code = PicturesFailed.code if result.get("failed") else 0
    kind = spec.get("kind") if isinstance(spec, dict) else None
    return Found(
        run=run,
        kind=kind if isinstance(kind, str) else "",
        state=_state(code),
        code=code,
        code_name=None if code is None else BY_CODE[code].name,
        reason=str(end.get("reason", "")),
        committed=row.committed,
        pictures=row.pictures,
        changed=datetime.fromtimestamp(row.changed, UTC).isoformat(timespec="seconds"),
        bytes=row.bytes,
        records=f"{store.url}/{run}",
    )


def _state(code: int | None) -> str:
    match code:
        case None:
            return "unknown"
        case 0:
            return "succeeded"
        case Stopped.code:
            return "stopped"
        case _:
            return "failed"


def _held(row: Found) -> str:
    parts = [] if row.committed is None else [f"step {row.committed}"]
    if row.pictures:
        parts.append(f"{row.pictures} pictures")
    return ", ".join(parts) or "nothing yet"
