"""Owns the exit codes of a job and the exceptions that carry them. Imports nothing of ours.

JobError                 code  Kubernetes
|-- BadSpec               78   FailJob: the same spec fails again
|-- BadData               65   FailJob: the same data fails again
|-- Diverged              70   FailJob: the loss is not finite
|-- PicturesFailed        74   FailJob: the others are in the store
|-- Stopped               75   Ignore: stopped on request after committing a newer step
|-- Unavailable           69   counted retry: store or hub away, or stopped with nothing new
`-- Stalled               79   counted retry: a worker was silent past the limit
any other exception        1   counted retry: a bug
killed by the kernel     137   counted retry: out of memory
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import ClassVar, Literal

Retry = Literal["done", "final", "free", "counted"]


@dataclass(frozen=True, slots=True)
class ExitCode:
    """One row of the table that `k8s/jobs/*.yaml` repeats as its podFailurePolicy."""

    code: int
    name: str
    meaning: str
    retry: Retry


EXIT_CODES: tuple[ExitCode, ...] = (
    ExitCode(0, "succeeded", "results are committed and verified", "done"),
    ExitCode(1, "bug", "an unplanned error", "counted"),
    ExitCode(65, "bad data", "the data set or a prompt file cannot be used", "final"),
    ExitCode(69, "unavailable", "store or hub away, or stopped with nothing new", "counted"),
    ExitCode(70, "diverged", "the loss is not finite", "final"),
    ExitCode(74, "pictures failed", "inference ended and some pictures failed", "final"),
    ExitCode(75, "stopped", "stopped on request with a newer step committed", "free"),
    ExitCode(78, "bad spec", "the spec or the environment cannot be run", "final"),
    ExitCode(79, "stalled", "a worker was silent past the stall limit", "counted"),
    ExitCode(137, "killed", "killed by SIGKILL, as a rule for memory", "counted"),
)
BY_CODE = {row.code: row for row in EXIT_CODES}
FINAL = tuple(row.code for row in EXIT_CODES if row.retry == "final")
FREE = tuple(row.code for row in EXIT_CODES if row.retry == "free")


class JobError(Exception):
    """A planned failure: its text is one line that names the thing and the fix."""

    code: ClassVar[int] = 1


class BadSpec(JobError):
    """The spec or the environment cannot be run."""

    code = 78


class BadData(JobError):
    """The data set, a picture, a caption or a prompt file cannot be used."""

    code = 65


class Diverged(JobError):
    """The loss is not finite."""

    code = 70


class PicturesFailed(JobError):
    """Inference ended, and some pictures could not be made."""

    code = 74


class Stopped(JobError):
    """Stopped on request; a step newer than the one resumed from is committed."""

    code = 75


class Unavailable(JobError):
    """Store or hub away past the deadline, disk full, or stopped with nothing new."""

    code = 69


class Killed(JobError):
    """A worker was killed by the kernel, as a rule for memory."""

    code = 137


class Stalled(JobError):
    """A worker was silent past the stall limit."""

    code = 79


BY_EXIT: dict[int, type[JobError]] = {
    cls.code: cls
    for cls in (BadSpec, BadData, Diverged, PicturesFailed, Stopped, Unavailable, Stalled)
}

_NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def planned(error: Exception, where: object) -> JobError | None:
    """Return the planned failure that an exception stands for, or None if it is a bug.

    A disk that takes nothing more is planned; `where` names it if the exception does not.
    """
    if isinstance(error, JobError):
        return error
    if isinstance(error, OSError) and error.errno in _NO_MORE:
        place = error.filename or where
        return Unavailable(f"{place}: {error.strerror}; make room or give it another place")
    return None
