"""What an API server's refusals mean, by the words that real servers use."""

from __future__ import annotations

import json

import pytest

from launcher.backends import refusals
from launcher.errors import LauncherError, NameTaken, Unreachable


def refused(status: int, reason: str, message: str) -> LauncherError:
    body = json.dumps({"kind": "Status", "reason": reason, "message": message, "code": status})
    error = refusals.api_exception()(status=status, reason=reason)
    error.body = body
    with pytest.raises(LauncherError) as caught, refusals.translated("https://c", "cat-1"):
        raise error
    return caught.value


def test_a_name_that_exists_is_taken() -> None:
    found = refused(409, "AlreadyExists", 'jobs.batch "cat-1" already exists')
    assert isinstance(found, NameTaken)


def test_a_quota_that_several_change_at_once_takes_no_name() -> None:
    told = "Operation cannot be fulfilled on resourcequotas: please apply your changes again"
    found = refused(409, "Conflict", told)
    assert isinstance(found, Unreachable)
    assert told in found.text
    assert found.hint == "nothing was created; try again"
