"""Owns bringing models and data sets from object storage to this node, once for all its ranks.

A prefix is copied to <cache>/<content key>/ under a lock, file by file, each verified and appearing
whole, so that an interrupted copy goes on; `<content key>.json` says that it is complete. Must not
know what the files are.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs import commits, layout, specs
from jobs.commits import FileRow
from jobs.environment import Environment
from jobs.errors import BadData, BadSpec, Unavailable
from jobs.outbox import write_whole
from jobs.stores import Store, durable, open_store, sha256_of
from jobs.transfers import get_all

log = logging.getLogger("jobs.staging")

SCHEME = "s3://"
KEYS = ("model", "model_config_from", "vae", "data", "lora")
"""Keys of a spec that may name a prefix, or an object."""
POLL_SECONDS = 0.5
SPARE_BYTES = 256 * 1024 * 1024
"""Room that must be left on the disk; logs and compiled graphs want some."""


def stage(env: Environment, spec: specs.Spec, stopped: Callable[[], bool]) -> specs.Spec:
    """Return the spec with local paths in place of what had to be fetched.

    Raises:
        BadSpec: there is nothing under the prefix.
        BadData: an object is not the one that was committed.
        Unavailable: the disk has no room, or a stop was asked for.
        OSError: the store is away; the same call again goes on.
    """
    given = spec.model_dump(include=set(KEYS))
    local = {
        key: str(fetch(str(value), env, stopped))
        for key, value in given.items()
        if str(value).startswith(SCHEME)
    }
    return spec.model_copy(update=local)


def fetch(url: str, env: Environment, stopped: Callable[[], bool]) -> Path:
    """Return the folder, or the file, that holds what lies under `url`."""
    store, rows, single = _look(url, env)
    identity = json.dumps([url, [[row.path, row.bytes, row.sha256] for row in rows]])
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    cache = env.cache
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder, marker = cache / name, cache / f"{name}.json"
        with _locked(cache / f"{name}.lock", url, stopped):
            if not marker.exists():
                _copy(store, rows, folder, url)
                write_whole(marker, identity.encode())
    except PermissionError as error:
        raise _unwritable(cache) from error
    return folder / rows[0].path if single else folder


def _look(url: str, env: Environment) -> tuple[Store, list[FileRow], bool]:
    """Return the store, the files under the prefix, and whether the address is one object's.

    The digest of a row is a SHA-256 where the prefix is a committed set (launcher push), else what
    the store calls this version of the object.
    """
    store = open_store(url, env.access)
    try:
        return store, list(commits.read_manifest(store, "").files), False
    except FileNotFoundError:
        pass
    rows = [FileRow(entry.key, entry.size, entry.tag) for entry in store.list("")]
    rows = [row for row in rows if not row.path.endswith("/")]  # folders, as consoles make them
    parent, _, name = url.rstrip("/").rpartition("/")
    beside = open_store(parent, env.access) if parent.count("/") >= 2 else None
    if beside is not None and any(beside.list(name + layout.PUSHING)):
        raise BadSpec(f"{url}: its upload has not ended; the same launcher push goes on with it")
    if rows:
        _check_plain(url, rows)
        return store, rows, False
    if beside is not None:
        store = beside
        found = [entry for entry in store.list(name) if entry.key == name]
        if found:
            return store, [FileRow(name, found[0].size, found[0].tag)], True
    raise BadSpec(f"{url}: there is nothing in the store; launcher push puts a folder there")


def _check_plain(url: str, rows: list[FileRow]) -> None:
    """Refuse what is more than one set; take files that nobody committed as they are.

    Raises:
        BadSpec: it is a run, or several sets.
    """
    for row in rows:
        if row.path.rpartition("/")[2] in (layout.COMMITTED, layout.CLAIM):
            raise BadSpec(f"{url}: holds {row.path}: is a run or several sets; name one set")
    log.warning("staging=%s has no %s: %d files as they are", url, layout.COMMITTED, len(rows))


def _copy(store: Store, rows: list[FileRow], folder: Path, url: str) -> None:
    """Copy what is missing and compare each file with what it must be."""
    missing = [row for row in rows if not _whole(folder / row.path, row)]
    need, free = sum(row.bytes for row in missing), shutil.disk_usage(folder.parent).free
    if need + SPARE_BYTES > free:
        raise Unavailable(
            f"{folder.parent}: {free >> 20} MiB are free, and {url} needs {need >> 20}; give the "
            "job another cache directory"
        )
    started = time.monotonic()
    log.info("staging=%s files=%d bytes=%d", url, len(missing), need)
    for row in rows:
        if any(part in ("", ".", "..") for part in row.path.split("/")):
            raise BadData(f"{url}: has a key that leads out of its folder: {row.path!r}")
    get_all(store, [(row.path, folder / row.path) for row in missing])
    for row in missing:
        if not _whole(folder / row.path, row):
            (folder / row.path).unlink()
            raise BadData(f"{url}/{row.path}: is not the object that the store lists")
    for row in rows:  # before the marker that says that all are there
        durable(folder / row.path)
    log.info("staged=%s seconds=%.1f", url, time.monotonic() - started)


def _whole(path: Path, row: FileRow) -> bool:
    """Compare a file with its row: SHA-256, or the MD5 that the ETag of a small object is."""
    if not path.is_file() or path.stat().st_size != row.bytes:
        return False
    if len(row.sha256) == 64:
        return sha256_of(path) == row.sha256
    if len(row.sha256) == 32 and "-" not in row.sha256:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        return digest.hexdigest() == row.sha256
    return True


@contextmanager
def _locked(path: Path, url: str, stopped: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock file; another job of this node may be copying the same."""
    with path.open("w") as lock:
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if stopped():
                    raise Unavailable(f"stopped while another job was fetching {url}") from None
                if not told:
                    log.info("staging=%s waits for another job of this node", url)
                told = True
                time.sleep(POLL_SECONDS)
        yield


def _unwritable(cache: Path) -> Unavailable:
    return Unavailable(
        f"{cache}: cannot be written by uid {os.getuid()}; its owner must be that user (Kubernetes "
        "makes missing hostPath folders for root)"
    )
