"""Owns trying the store from within a pod: `python -m jobs.doctor`, for `launcher doctor --pod`.

Reads the environment that a run reads, does once what a run does, removes its probe, and tells in
one line of JSON on stdout and in the termination message. Must not know what a run is.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from jobs import __version__
from jobs.errors import BadSpec, JobError, Unavailable
from jobs.s3 import S3Store
from jobs.stores import FileStore, Refused, Store, open_store

PART_BYTES = 5 * 1024 * 1024
"""The smallest part that S3 takes (S3 User Guide, "Amazon S3 multipart upload limits")."""
MESSAGE_BYTES = 4000
"""The kubelet keeps 4,096 bytes of a termination message."""
_TEXT_BYTES = 600
Row = dict[str, object]


class Odd(OSError):
    """The store answers, and not as a store has to."""


def tried(store: Store) -> Iterator[tuple[str, OSError | None]]:
    """Yield each step with what went wrong; ends with the first failure, and removes its probe."""
    folder = f"doctor-{secrets.token_hex(8)}"
    small, large = f"{folder}/small", f"{folder}/large"
    steps: dict[str, Callable[[], None]] = {
        "PUT": lambda: _put(store, small),
        "GET": lambda: _same(store.read(small)),
        "list": lambda: _listed(store, small),
        "multipart": lambda: _multipart(store, large),
        "DELETE": lambda: _deleted(store, folder, small, large),
    }
    try:
        for name, step in steps.items():
            try:
                step()
            except OSError as error:
                yield name, error
                return
            yield name, None
    finally:
        _clean(store, folder, small, large)


def _put(store: Store, key: str) -> None:
    store.write(key, b"probe")


def _same(found: bytes) -> None:
    if found != b"probe":
        raise Odd("the store gives back other bytes than were written")


def _listed(store: Store, key: str) -> None:
    if key not in [entry.key for entry in store.list(key.rpartition("/")[0])]:
        raise Odd(f"{key}: was written and is not in the list")


def _multipart(store: Store, key: str) -> None:
    if isinstance(store, S3Store):
        store.part_bytes = PART_BYTES
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        path = Path(folder) / "probe"
        path.write_bytes(os.urandom(2 * PART_BYTES))
        stored = store.put(key, path)
        if store.sha256(key) != stored.sha256:
            raise Odd("the store gives back other bytes than were written")


def _deleted(store: Store, folder: str, *keys: str) -> None:
    for key in keys:
        store.delete(key)
    left = [entry.key for entry in store.list(f"{folder}/")]
    if left:
        raise Odd(f"{left[0]}: was deleted and is still in the list")


def _clean(store: Store, folder: str, *keys: str) -> None:
    for key in keys:
        with suppress(OSError):
            store.delete(key)
    if isinstance(store, FileStore):
        with suppress(OSError):
            (store.root / folder).rmdir()


def report() -> tuple[int, dict[str, object]]:
    """Return the exit code, and what the launcher reads."""
    url = os.environ.get("JOB_STORE", "")
    found: dict[str, object] = {"store": url, "jobs": __version__, "machine": platform.machine()}
    rows: list[Row] = []
    code = 0
    try:
        if not url:
            raise BadSpec("JOB_STORE: missing")
        for name, error in tried(open_store(url)):
            rows.append({"check": name, "ok": error is None, "text": _line(error)})
            if error is not None:
                refused = isinstance(error, Refused | Odd)
                code = BadSpec.code if refused else Unavailable.code
    except JobError as error:
        code = error.code
        rows.append({"check": "open", "ok": False, "text": _line(error)})
    return code, found | {"works": code == 0, "checks": rows}


def _line(error: Exception | None) -> str:
    return "" if error is None else " ".join(str(error).split())[:_TEXT_BYTES]


def main() -> int:
    """Run as `python -m jobs.doctor`: 0; 69 store away; 78 a setting is to be mended."""
    code, found = report()
    line = json.dumps(found)
    print(line, flush=True)  # noqa: T201
    if log_file := os.environ.get("TERMINATION_LOG"):
        with suppress(OSError):
            Path(log_file).write_text(line[:MESSAGE_BYTES] + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
