"""Owns the launcher's planned failures: one class an exit code; must not import anything of ours.

LauncherError
|-- Usage          2   flags or arguments
|-- NotFound      66   no such run, file or checkpoint, or not the one that was committed
|-- Unreachable   69   cluster or store cannot be reached
|-- RunFailed     70   `--wait` or `logs -f` saw the run fail
|-- NameTaken     73   a run of that name exists, or a file that `fetch` would replace
|-- Forbidden     77   the cluster or the file system refuses
`-- Misconfigured 78   launcher.toml, environment, spec (its prompt file too) or manifest
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar


class LauncherError(Exception):
    """A planned failure: `text` is one line `subject: what is wrong`, `hint` the fix.

    `rows` are what is wrong where that is a list, such as the bad lines of a file.
    """

    code: ClassVar[int] = 1

    def __init__(self, text: str, hint: str = "", rows: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint
        self.rows = rows


class Usage(LauncherError):
    """A flag or an argument is wrong."""

    code = 2


class NotFound(LauncherError):
    """No such run, file or checkpoint."""

    code = 66


class Unreachable(LauncherError):
    """The cluster or the store cannot be reached."""

    code = 69


class RunFailed(LauncherError):
    """The run that was waited for failed."""

    code = 70


class NameTaken(LauncherError):
    """A run of that name exists, or another file in the place of one that is fetched."""

    code = 73


class Forbidden(LauncherError):
    """The cluster or the file system refuses."""

    code = 77


class Misconfigured(LauncherError):
    """launcher.toml, the environment, the spec or the manifest is wrong."""

    code = 78


_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_FOLDER = (errno.EEXIST, errno.ENOTDIR)


@contextmanager
def writing(subject: str, hint: str) -> Iterator[None]:
    """Translate what the file system says while `subject`, such as `store /srv/runs`, is written.

    Raises:
        Forbidden: it is read-only, or another user's.
        Unreachable: the disk is full.
        Misconfigured: a path is no folder, or anything else that names a path.
    """
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        what = f"{where}{error.strerror or error}"
        if error.errno in _NO_FOLDER and error.filename:
            path = Path(os.fsdecode(error.filename))
            found = [place for place in (path, *path.parents) if place.is_file()]
            what = f"{found[0]}: is a file, not a folder" if found else what
        if error.errno in _DENIED:
            raise Forbidden(f"{subject}: cannot be written: {what}", hint) from error
        if error.errno in _FULL:
            raise Unreachable(f"{subject}: the disk is full", f"make room, or {hint}") from error
        raise Misconfigured(f"{subject}: {what}", hint) from error
