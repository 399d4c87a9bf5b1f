"""Owns trying a store: does really, with a probe, what a run does, and names what fails.

Whatever it writes it removes again. Must not print, nor decide what to try next (doctor.py).
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from jobs.s3 import S3Store
from jobs.s3faults import Outdated
from jobs.stores import Conflict, FileStore, Refused, Store
from launcher import storage
from launcher.errors import Forbidden, LauncherError, Misconfigured, Unreachable, writing

T = TypeVar("T")
Setting = Literal[
    "", "store", "store_endpoint", "store_region", "store_addressing", "store_checksum",
    "credentials", "certificate",
]  # fmt: skip

PART_BYTES = 5 * 1024 * 1024
"""The smallest part that S3 takes (S3 User Guide, "Amazon S3 multipart upload limits")."""
CONNECT_SECONDS = 5


_PROBE = re.compile(r"/doctor-[0-9a-f]{16}(/\w+)?")
"""Our own key, which tells a person nothing."""
_NONE = ("NotImplemented", "501")


class _Odd(OSError):
    """The store answers, and not as a store has to."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried."""

    name: str
    good: bool
    text: str = ""
    """What was found, on one line."""
    setting: Setting = ""
    """What is to be mended; empty if nothing is, or nobody knows."""
    error: Exception | None = None


def connect(endpoint: str) -> Check:
    """Try to reach the endpoint's host; a proxy would have to be asked instead, and is not."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(endpoint)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(f"{host}:{port}"):
        # It may hold a password.
        return Check("connect", True, f"{endpoint} by way of the proxy {urlsplit(proxy).hostname}")
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except socket.gaierror as error:
        return Check("connect", False, f"{host}: its name is not known", "store_endpoint", error)
    except OSError as error:
        text = f"{host}:{port}: {error.strerror or 'no answer in time'}"
        return Check("connect", False, text, "store_endpoint", error)
    return Check("connect", True, endpoint)


def quick(store: Store) -> Check:
    """Write, read and delete a small object: whether the settings are worth a full look."""
    key = f"doctor-{secrets.token_hex(8)}/quick"
    found = _tried("quick", lambda: _small(store, key))
    with suppress(OSError):
        store.delete(key)
    return found


def everything(store: Store) -> list[Check]:
    """Try all that a run does; what depends on a failed step is not tried."""
    folder = f"doctor-{secrets.token_hex(8)}"
    small, large, once = f"{folder}/small", f"{folder}/large", f"{folder}/once"
    checks = [_tried("PUT", lambda: _put(store, small))]
    if not checks[0].good:
        return checks  # which has left nothing
    checks += [
        _tried("GET", lambda: _same(store.read(small), b"probe")),
        _tried("list", lambda: _listed(store, small)),
        _tried("multipart", lambda: _multipart(store, large)),
        _tried("conditional PUT", lambda: _conditional(store, once)),
        _tried("list uploads", lambda: _uploads(store, folder)),
        _tried("DELETE", lambda: _deleted(store, (small, large, once), folder)),
    ]
    with suppress(OSError):
        for entry in list(store.list(f"{folder}/")):
            store.delete(entry.key)
    if isinstance(store, FileStore):
        shutil.rmtree(store.root / folder, ignore_errors=True)
    return checks


def failure(check: Check) -> LauncherError:
    """Return the planned failure that a check stands for."""
    text, hint = f"{check.name}: {check.text}", _HINTS[check.setting]
    if isinstance(check.error, OSError) and check.error.filename:
        try:
            with writing(check.name, "--store names another folder"):
                raise check.error
        except LauncherError as problem:
            return problem
    if check.setting == "credentials":
        return Forbidden(text, hint)
    if check.setting == "store_endpoint" and not isinstance(check.error, Refused):
        return Unreachable(text, hint)
    return Misconfigured(text, hint)


_HINTS: dict[Setting, str] = {
    "": "",
    "store": "correct store (s3://bucket/prefix), or create the bucket",
    "store_endpoint": "correct store_endpoint, or store_endpoint_here for this machine alone",
    "store_region": "correct store_region",
    "store_addressing": "correct store_addressing",
    "store_checksum": "correct store_checksum",
    "credentials": "credentials come from AWS_* variables or ~/.aws",
    "certificate": "AWS_CA_BUNDLE names the file of the authority that signed it",
}


def region_named(error: Exception | None) -> str:
    """Return the region that the server says is the right one, if it does."""
    answer = getattr(error and error.__cause__, "response", None) or {}
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    told = headers.get("x-amz-bucket-region") or answer.get("Error", {}).get("Region") or ""
    if not told:
        message = str(answer.get("Error", {}).get("Message", ""))
        found = re.search(r"expect(?:ing|ed)[^'\"]*['\"]([a-z0-9-]+)['\"]", message)
        told = found.group(1) if found else ""
    return str(told)


def _tried(name: str, action: Callable[[], str]) -> Check:
    try:
        return Check(name, True, action())
    except Conflict as error:
        return Check(name, False, "the object changed meanwhile", "", error)
    except OSError as error:
        # Python names the source where the target's disk is full.
        where = "" if error.errno == errno.ENOSPC else f"{error.filename}: "
        told = f"{where}{error.strerror}" if error.filename else str(error)
        text = _PROBE.sub("", " ".join(told.split()))
        return Check(name, False, text, _blamed(error), error)


def _blamed(error: OSError) -> Setting:
    """Return the setting that an answer blames; trying others is doctor's."""
    cause = error.__cause__
    answer: dict[str, Any] = getattr(cause, "response", None) or {}
    code = str(answer.get("Error", {}).get("Code", ""))
    words = f"{code} {answer.get('Error', {}).get('Message', '')}"
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if error.filename:
        return "store"
    if isinstance(error, _Odd):
        return ""
    if "certificate" in str(error):
        return "certificate"
    if code in ("NoSuchBucket", "InvalidBucketName"):
        return "store"
    if "egion" in words or code == "AuthorizationHeaderMalformed":
        return "store_region"
    if "hecksum" in words:
        return "store_checksum"
    if storage.of_credentials(error):
        return "credentials"
    if 300 <= status < 400 or not isinstance(error, Refused):
        return "store_endpoint"
    return ""


def _small(store: Store, key: str) -> str:
    _put(store, key)
    _same(store.read(key), b"probe")
    store.delete(key)
    return ""


def _put(store: Store, key: str) -> str:
    store.write(key, b"probe")
    if not isinstance(store, S3Store) or store.checksum == "none":
        return "proven by reading back"
    asked = store.access.checksum
    ignored = "" if asked == store.checksum else f": the server ignores {asked}"
    return f"proven by {store.checksum}{ignored}"


def _same(found: bytes, wanted: bytes) -> str:
    if found != wanted:
        raise _Odd("the store gives back other bytes than were written")
    return ""


def _listed(store: Store, key: str) -> str:
    if key not in [entry.key for entry in store.list(key.rpartition("/")[0])]:
        raise _Odd(f"{key}: was written and is not in the list")
    return ""


def _multipart(store: Store, key: str) -> str:
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        path = Path(folder) / "probe"
        path.write_bytes(os.urandom(2 * PART_BYTES))
        stored = store.put(key, path)
        if store.sha256(key) != stored.sha256:
            raise _Odd("the store gives back other bytes than were written")
    return "2 parts of 5 MiB"


def _uploads(store: Store, folder: str) -> str:
    try:
        store.unfinished(folder)
    except Refused as error:
        # A run does without; what a killed pod has sent of a large file is then never collected.
        return f"refused, so that uploads that nobody ends stay: {_PROBE.sub('', str(error))}"
    return ""


def _conditional(store: Store, key: str) -> str:
    store.swap(key, None, b"first")
    if isinstance(store, S3Store):
        # Asked past `swap`, which looks before it writes and so makes do without.
        instead = ": the claim of a run is compared and read back instead"
        try:
            store.call("put_object", key, Body=b"second", IfNoneMatch="*")
        except Refused as error:
            if getattr(error.__cause__, "response", {}).get("Error", {}).get("Code") not in _NONE:
                raise
            return f"the server has none{instead}"
        except Outdated:
            return ""
        return f"the server ignores the condition{instead}"
    try:
        store.swap(key, None, b"second")
    except Conflict:
        return ""
    raise _Odd("an object that exists was replaced by one that must not exist")


def _deleted(store: Store, keys: tuple[str, ...], folder: str) -> str:
    for key in keys:
        store.delete(key)
    left = [entry.key for entry in store.list(f"{folder}/")]
    if left:
        raise _Odd(f"{left[0]}: was deleted and is still in the list")
    return ""
