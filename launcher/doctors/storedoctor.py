"""Owns doctor's look at the store: tried with the settings as they are, then with others.

What is tried and what its failing means is probe.py's. Must not print what it found (doctor.py).
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import TypeVar, cast
from urllib.parse import urlsplit

from jobs.access import ADDRESSING, AUTO, CHECKSUMS, Access
from jobs.errors import BadSpec
from jobs.s3 import S3Store
from jobs.s3faults import retrying
from jobs.stores import Refused, Store
from launcher import output, places, storage
from launcher.backends.localrun import make_folders
from launcher.doctors import probe
from launcher.doctors.probe import PART_BYTES, Check, Setting
from launcher.errors import LauncherError, Misconfigured, writing
from launcher.settings import Settings

T = TypeVar("T")
ATTEMPTS = 2
"""Of a request: a person waits, and most of what is tried is expected to fail."""
PATIENCE_SECONDS = 60.0
"""For all other settings together."""
MOST_CHANGES = 2
"""Of settings at once; who has three wrong is told the first."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of trying a store."""

    store: Store
    checks: tuple[Check, ...]
    told: str = ""
    """How it is spoken to, if it works."""
    rows: Mapping[str, str] = field(default_factory=dict)
    """Keys of launcher.toml with which everything works, where they are others."""
    problem: LauncherError | None = None
    """The first thing that went wrong; its hint is the fix."""

    def document(self) -> dict[str, object]:
        """Return it for --json."""
        return {
            "store": self.store.url,
            "works": all(check.good for check in self.checks),
            "checks": [
                {
                    "check": row.name,
                    "ok": row.good,
                    "setting": row.setting or None,
                    "text": row.text,
                }
                for row in self.checks
            ],
            "settings": dict(self.rows),
        }


def lines(rows: Mapping[str, str]) -> list[str]:
    """Return keys as lines of launcher.toml."""
    return [f'{key} = "{value}"' for key, value in rows.items()]


def tried(settings: Settings) -> Trial:
    """Return what came of everything a run does with the store that is set.

    Raises:
        Misconfigured: none is set, or it is no store's address.
        Forbidden, Unreachable: it is a folder that cannot be made.
    """
    if not storage.remote(settings.target.store):
        return _tried_folder(settings)
    url, how = settings.target.store, storage.access(settings.target)
    store = _store(url, how)
    checks = [_connected(store)]
    if checks[0].good:
        checks += probe.everything(store)
    wrong = next((check for check in checks if not check.good), None)
    if wrong is None:
        return Trial(store, tuple(checks), _told(store))
    better = _better(url, how, wrong)
    rows = {} if better is None else _rows(how, better, settings)
    if rows:
        # What helps is what was wrong, whatever the server had to say about it.
        key = cast("Setting", next(iter(rows)).removesuffix("_here"))
        blamed = replace(wrong, setting=key)
        checks[checks.index(wrong)] = wrong = blamed
    problem = probe.failure(wrong)
    if better is not None:
        problem = Misconfigured(problem.text, f"in launcher.toml: {', '.join(lines(rows))}")
    return Trial(store, tuple(checks), rows=rows, problem=problem)


def _tried_folder(settings: Settings) -> Trial:
    if not settings.target.store and settings.target.backend != "local":
        storage.of_target(settings.target)  # says that none is set
    store = places.folder_store(settings)
    with writing(f"store {store.root}", "--store names another folder"), ExitStack() as undo:
        make_folders(store.root, undo)
        checks = probe.everything(store)
    wrong = next((check for check in checks if not check.good), None)
    problem = probe.failure(wrong) if wrong is not None else None
    return Trial(store, tuple(checks), problem=problem)


class _Impatient(S3Store):
    """A store that does not wait long for a server that is away."""

    def trying(self, key: str, action: Callable[[], T]) -> T:
        """Send a request, twice at most."""
        return retrying(self.place(key), action, ATTEMPTS)


def _store(url: str, how: Access) -> S3Store:
    bucket, _, prefix = url.removeprefix(storage.REMOTE).partition("/")
    try:
        return _Impatient(bucket, prefix, how, part_bytes=PART_BYTES)
    except BadSpec as error:
        raise Misconfigured(str(error), "s3://bucket/prefix") from error


def _connected(store: S3Store) -> Check:
    """Try the address that boto3 comes to: its own variables and profiles count as well."""
    try:
        endpoint = store.trying("", lambda: str(store.client.meta.endpoint_url))
    except Refused as error:
        setting = "credentials" if "redential" in str(error) else "store_endpoint"
        return Check("connect", False, str(error), setting, error)  # type: ignore[arg-type]
    return probe.connect(endpoint)


def _better(url: str, how: Access, wrong: Check) -> Access | None:
    """Return the settings nearest to `how` with which everything works, if there are any."""
    if wrong.name == "connect" or wrong.setting == "certificate":
        return None
    # For another host or region, a request would have been signed otherwise.
    signed = "SignatureDoesNotMatch" in wrong.text or "AccessDenied" in wrong.text
    if wrong.setting == "credentials" and not (wrong.name == "PUT" and signed):
        return None
    until, tried = time.monotonic() + PATIENCE_SECONDS, 0
    for other in _others(url, how, probe.region_named(wrong.error)):
        if time.monotonic() > until:
            break
        if wrong.setting in ("credentials", "store") and other.checksum != how.checksum:
            continue
        tried += 1
        store = _store(url, other)
        if probe.quick(store).good and all(check.good for check in probe.everything(store)):
            return other
    output.say(f"tried {output.counted(tried, 'other setting')}: nothing works")
    return None


def _others(url: str, how: Access, region: str) -> Iterator[Access]:
    """Yield other settings, those with the fewest changes first.

    Args:
        url: the store.
        how: the settings as they are.
        region: what the server calls its region, if it said so.
    """
    now = _store(url, how).access  # with every `auto` decided
    styles = [s for s in ADDRESSING if s not in (AUTO, now.addressing)]
    if now.addressing == "path" and _is_number(how.endpoint):
        styles = []  # boto3 puts no bucket before it, whatever is set
    choices = {
        "region": [how.region, *([region] if region else [])],
        "addressing": [how.addressing, *styles],
        "checksum": [how.checksum, *(s for s in CHECKSUMS if s not in (AUTO, now.checksum))],
        "endpoint": [how.endpoint, *_endpoints(url, how.endpoint)],
    }
    found = [
        replace(how, **dict(zip(choices, values, strict=True)))
        for values in product(*choices.values())
    ]
    for count in range(1, MOST_CHANGES + 1):
        yield from (other for other in found if _changes(how, other) == count)


def _endpoints(url: str, endpoint: str) -> Iterator[str]:
    """Yield what the endpoint may have been meant to be."""
    scheme, _, host = endpoint.partition("://")
    bucket = url.removeprefix(storage.REMOTE).partition("/")[0]
    if host.startswith(f"{bucket}."):  # an address of the bucket, as consoles show it
        yield f"{scheme}://{host.removeprefix(f'{bucket}.')}"
    if host:
        yield f"{'http' if scheme == 'https' else 'https'}://{host}"


def _is_number(endpoint: str) -> bool:
    """Return whether the endpoint's host is an address and no name."""
    try:
        ipaddress.ip_address(urlsplit(endpoint).hostname or "")
    except ValueError:
        return False
    return True


def _changes(how: Access, other: Access) -> int:
    was, now = asdict(how), asdict(other)
    return sum(now[key] != was[key] for key in now)


def _rows(how: Access, better: Access, settings: Settings) -> dict[str, str]:
    """Return the keys of launcher.toml that differ."""
    was, now = asdict(how), asdict(better)
    rows = {f"store_{key}": now[key] for key in now if now[key] != was[key]}
    if settings.target.store_endpoint_here and "store_endpoint" in rows:
        rows["store_endpoint_here"] = rows.pop("store_endpoint")
    return rows


def _told(store: S3Store) -> str:
    how = store.access
    return f"region {how.region or store.client.meta.region_name}, addressing {how.addressing}"
