"""Owns how this machine reaches a store: which endpoint, whose part tables, what a refusal means.

Every verb opens its store here and asks it inside `asking`. Must not know what lies in a store.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from jobs.access import Access
from jobs.errors import BadSpec
from jobs.s3faults import KEYS
from jobs.stores import FileStore, Refused, Store, open_store
from launcher.errors import Forbidden, LauncherError, Misconfigured, Unreachable, writing
from launcher.settings import Target

REMOTE = "s3://"
CACHE = "ascend-diffusion-jobs"
"""Folder of ours below XDG_CACHE_HOME."""
DOCTOR = "launcher doctor finds the settings that work"


def remote(url: str) -> bool:
    """Return whether the store is not a folder."""
    return url.startswith(REMOTE)


def access(target: Target) -> Access:
    """Return how this machine speaks to the target's store."""
    return Access(
        endpoint=target.store_endpoint_here or target.store_endpoint,
        region=target.store_region,
        addressing=target.store_addressing,
        checksum=target.store_checksum,
    )


def of_target(target: Target) -> Store:
    """Return the store that is set, as this machine reaches it; nothing is sent yet.

    Raises:
        Misconfigured: no store is set, or it is no store's address.
    """
    if not target.store:
        raise Misconfigured(
            "store: is not set", "store in launcher.toml, LAUNCHER_STORE or --store"
        )
    return opened(target.store, access(target))


def of_run(environment: Mapping[str, str]) -> Store:
    """Return the store that a local run was submitted with.

    Args:
        environment: the run's, as it was recorded.

    Raises:
        Misconfigured: the record names no store.
    """
    try:
        return opened(environment.get("JOB_STORE", ""), Access.read(environment))
    except BadSpec as error:
        raise Misconfigured(str(error)) from error


def opened(url: str, how: Access) -> Store:
    """Return a store; part tables of interrupted uploads lie in the user's cache.

    Raises:
        Misconfigured: the URL is no store's address.
    """
    try:
        return open_store(url, how, scratch=cache("uploads"))
    except BadSpec as error:
        raise Misconfigured(
            str(error), "a store is s3://bucket/prefix, file:///path or a path"
        ) from error


def cache(*parts: str) -> Path:
    """Return a folder below the user's cache, which need not exist (XDG base directories)."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The specification: a relative one is to be ignored.
    home = Path(root) if root.startswith("/") else Path.home() / ".cache"
    return home.joinpath(CACHE, *parts)


def digest(text: str) -> str:
    """Return a short name for a file of the cache that belongs to `text`."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


@contextmanager
def asking(store: Store) -> Iterator[None]:
    """Translate what goes wrong while a store is read or written.

    What the file system says about a file of this machine passes, for `writing` around it.

    Raises:
        Forbidden: credentials are missing or wrong, or may not do this.
        Misconfigured: bucket, endpoint, region or another setting is wrong.
        Unreachable: the store does not answer.
    """
    if isinstance(store, FileStore):
        with writing(f"store {store.root}", "--store names another folder"):
            yield
        return
    try:
        yield
    except Refused as error:
        raise refusal(error) from error
    except FileNotFoundError as error:
        if error.filename:  # a file of this machine
            raise
        raise Unreachable(f"{error}: was deleted meanwhile", "try again") from error
    except OSError as error:
        if error.filename or error.errno in _OURS:
            raise
        raise Unreachable(_line(error), f"try again; {DOCTOR}") from error


def refusal(error: Refused) -> LauncherError:
    """Return what a refusal means: credentials and rights are one thing, settings another."""
    if of_credentials(error):
        hint = f"credentials come from AWS_* variables or ~/.aws; {DOCTOR}"
        return Forbidden(_line(error), hint)
    return Misconfigured(_line(error), DOCTOR if error.__cause__ else "")


def of_credentials(error: Exception) -> bool:
    """Return whether a store refuses who asks, or that this one does what was asked for."""
    cause = error.__cause__
    told = getattr(cause, "response", None) or {}
    status = told.get("ResponseMetadata", {}).get("HTTPStatusCode")
    # Servers differ in code and status for a key that nobody has; all of them say it in words.
    named = "access key" in str(told.get("Error", {}).get("Message", "")).lower()
    code = told.get("Error", {}).get("Code") in KEYS
    return status in (401, 403) or code or named or type(cause).__name__ in _NO_CREDENTIALS


_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""What only the file system says; a write to an open file names none."""
_NO_CREDENTIALS = (
    "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError",
)  # fmt: skip


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
