"""Owns where runs are looked for: the folder of the local backend, a cluster, the store of records.

Must not read a run's records.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from jobs.errors import BadSpec
from jobs.stores import FileStore, Store, open_store
from launcher import names, output, storage
from launcher.backends import localrun
from launcher.backends.localrun import Files, Record
from launcher.errors import Misconfigured, NotFound, Usage
from launcher.settings import Settings, Target

LOCAL_STORE = "./runs"
"""Store of the local backend when nobody set one."""
DEADLINE = 1
"""Minutes that a folder of this machine may be away; only what lies over a network comes back."""


def local_root(settings: Settings) -> Path:
    """Return the folder of this machine that the local backend keeps its own files in.

    With a store that is a folder it is that folder, so that a run lies in one place.

    Raises:
        Misconfigured: the store that was set is no store's address.
    """
    return folder_store(settings).root.absolute()


def folder_store(settings: Settings) -> FileStore:
    """Return the folder that is set as the store, or the local backend's own.

    Raises:
        Misconfigured: the store that was set is no store's address.
    """
    url = settings.target.store
    if not url or storage.remote(url):
        url = LOCAL_STORE
    try:
        store = open_store(url)
    except BadSpec as error:
        raise Misconfigured(
            f"store {url!r} (from {settings.origins['store']}): is neither a folder nor a bucket",
            f"--store {LOCAL_STORE}, or --store s3://bucket/prefix",
        ) from error
    assert isinstance(store, FileStore)
    return store


def local_target(settings: Settings) -> Target:
    """Return the target with what the local backend assumes where nobody said otherwise.

    Raises:
        Misconfigured: as `local_root` does.
    """
    target = settings.target
    if storage.remote(target.store):
        # The job runs here, too, and sees the store as this machine does.
        return replace(target, store_endpoint=target.store_endpoint_here or target.store_endpoint)
    minutes = target.store_deadline_minutes
    return replace(
        target,
        store=str(local_root(settings)),
        store_deadline_minutes=minutes if settings.is_set("store_deadline_minutes") else DEADLINE,
    )


def records_of(files: Files, record: Record) -> Store:
    """Return the store that a local run's records are in.

    Raises:
        Misconfigured: the run's own record names none.
    """
    if storage.remote(record.environment.get("JOB_STORE", "")):
        return storage.of_run(record.environment)
    return FileStore(files.run.parent)  # wherever the folder has been moved to


def store_of(settings: Settings, run: str, verb: str) -> Store:
    """Return the store with a run's data; no cluster is needed to read it.

    Raises:
        NotFound, Misconfigured: as `find` does.
    """
    target = settings.target
    legal(run)
    named = settings.origins["store"] == "--store" and storage.remote(target.store)
    if target.store and (target.backend == "kubernetes" or named):
        return storage.of_target(target)
    try:
        files = find(settings, run, verb)
    except NotFound:
        if not storage.remote(target.store):
            raise
        return storage.of_target(target)  # submitted on another machine
    return records_of(files, localrun.read(files))


def here(settings: Settings, run: str) -> Files | None:
    """Return the run of that name if it is this machine's; None: a cluster is to be asked.

    Raises:
        NotFound: the local backend is asked for, and has no such run.
        Misconfigured: its record is damaged, or the store that was set is no store's address.
    """
    if settings.target.backend == "local":
        files = Files(local_root(settings) / legal(run))
        localrun.read(files)
        return files
    root = unasked_root(settings)
    if root is not None and Files(root / legal(run)).plan.is_file():
        output.say(f"local: {run} is in {root} (no backend is set; see --backend)")
        return Files(root / run)
    return None


def find(settings: Settings, run: str, verb: str) -> Files:
    """Return the local run of that name, for a verb that a cluster cannot serve.

    Raises:
        NotFound: there is none, and no cluster is asked for.
        Misconfigured: the run is a cluster's, and no store is set.
    """
    found = here(settings, run)
    if found is not None:
        return found
    hint = "--store names the place that holds its results"
    looked = unasked_root(settings)
    if looked is not None:
        raise NotFound(f"run {run!r}: no such run in {looked}", hint)
    raise Misconfigured(f"run {run!r}: no store is set, and {verb} reads one", hint)


def local_files(settings: Settings, run: str, store: Store) -> Files | None:
    """Return the files of the run of that store if it was submitted on this machine."""
    if settings.is_set("backend") and settings.target.backend != "local":
        return None
    files = Files(local_root(settings) / legal(run))
    if files.plan.is_file() and records_of(files, localrun.read(files)).url == store.url:
        return files
    return None


def all_here(settings: Settings) -> Path | None:
    """Return the folder of the local runs if those are meant; None: a cluster's are."""
    if settings.target.backend == "local":
        return local_root(settings)
    root = unasked_root(settings)
    asked = settings.is_set("context") or settings.is_set("namespace")
    if root is not None and root.is_dir() and not asked:
        output.say(
            f"local: runs of {root} (no backend is set; --backend kubernetes: the cluster's)"
        )
        return root
    return None


def flags(settings: Settings) -> str:
    """Return the flags, each with a blank before, that lead another verb to the same place."""
    if settings.origins["store"] != "--store":
        return ""  # found without them
    return f" --backend local --store {shlex.quote(settings.target.store)}"


def legal(run: str) -> str:
    """Return the name of a run that may exist.

    Raises:
        NotFound: none can have that name.
    """
    try:
        names.check(run)
    except Usage as error:
        raise NotFound(f"run {run!r}: no such run; that is no legal name") from error
    return run


def unasked_root(settings: Settings) -> Path | None:
    """Return where local runs would be if nobody chose a backend, or None if somebody did."""
    cluster = any(settings.origins[key].startswith("--") for key in ("context", "namespace"))
    return None if settings.is_set("backend") or cluster else local_root(settings)
