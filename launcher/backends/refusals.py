"""Owns what an API server's refusal, or its silence, means: our own errors, one line each.

Must not send anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from launcher.errors import Forbidden, LauncherError, Misconfigured, NameTaken, Unreachable

WAYS_OUT = "point --context or KUBECONFIG at a cluster, or run here with --backend local"


def api_exception() -> Any:
    """Return the client's class for answers of 400 and more."""
    from kubernetes.client.exceptions import ApiException

    return ApiException


@contextmanager
def translated(server: str, name: str) -> Iterator[None]:
    """Turn what client and transport raise into our own errors, chained.

    Args:
        server: the API server's address, for messages.
        name: the run that is spoken of.

    Raises:
        LauncherError: instead of ApiException and HTTPError.
    """
    from urllib3.exceptions import HTTPError

    try:
        yield
    except api_exception() as error:
        raise _refusal(error, server, name) from error
    except HTTPError as error:
        if _UNTRUSTED in str(error):
            told = _untrusted(str(error))
            raise Misconfigured(f"cluster {server}: {told}", _TRUST) from error
        raise Unreachable(f"cluster {server}: {transport(error)}", WAYS_OUT) from error


_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
_TRUST = "the kubeconfig's certificate-authority has to be the one of this server; or its clock"
_TRUST += " or ours is wrong"


def _untrusted(text: str) -> str:
    """Return why a server's certificate is not believed, from OpenSSL's words."""
    found = re.search(r"certificate verify failed: ([^(\n]+)", text)
    return f"its certificate is not trusted: {found[1].strip() if found else line(text)}"


def _refusal(error: Any, server: str, name: str) -> LauncherError:
    """Return what an answer of the API server means."""
    text = message_of(error)
    match error.status:
        case 401:
            return Forbidden(
                f"cluster {server}: does not accept the credentials of this context",
                "log in again (a token or certificate that has expired is refused, too), or choose"
                " another --context",
            )
        case 403:
            return Forbidden(f"cluster: {text}", _right(text))
        case 404 if "namespaces" in text:
            return Misconfigured(f"namespace: {text}", "create it, or choose another with -n")
        case 409 if _reason(error) == "Conflict":
            # Such as a quota that several creates change at once.
            return Unreachable(f"cluster {server}: {text}", "nothing was created; try again")
        case 409:
            return NameTaken(f"run {name!r}: exists", "choose another --name, or cancel that run")
        case 400 | 404 | 422:
            return Misconfigured(f"manifest: {text}", "the base manifest or launcher.toml says so")
        case 0 if _UNTRUSTED in text:
            return Misconfigured(f"cluster {server}: {_untrusted(text)}", _TRUST)
        case 0:  # the client's way of telling a TLS failure
            return Unreachable(f"cluster {server}: {text}", WAYS_OUT)
        case _:
            return Unreachable(f"cluster {server}: answered {error.status}: {text}", "try again")


# `User "u" cannot list resource "jobs" in API group "batch" in the namespace "n"`
_CANNOT = re.compile(r'cannot (\w+) resource "([^"]+)" in API group "([^"]*)"')


def _right(text: str) -> str:
    """Return the hint for a refusal: the rule that is missing, if it says so."""
    found = _CANNOT.search(text)
    if not found:
        return "ask its administrator for the role or the exception"
    verb, resource, group = found.groups()
    quoted = group or '""'
    rule = f"{{apiGroups: [{quoted}], resources: [{resource}], verbs: [{verb}]}}"
    where = "Role" if "in the namespace" in text else "ClusterRole"
    return f"its administrator adds to your {where} (k8s/base/rbac.yaml): {rule}"


def _reason(error: Any) -> str:
    """Return the server's own word for a refusal, such as AlreadyExists."""
    try:
        return str(json.loads(error.body)["reason"])
    except (TypeError, ValueError, KeyError):
        return ""


def message_of(error: Any) -> str:
    """Return the server's own words on one line."""
    try:
        text = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        text = error.body or error.reason or ""
    return " ".join(str(text).split())


def transport(error: Exception) -> str:
    """Return the innermost reason of a chain of transport errors, on one line."""
    from urllib3.exceptions import NameResolutionError, NewConnectionError
    from urllib3.exceptions import TimeoutError as TimedOut

    reason = getattr(error, "reason", None) or error
    match reason:
        case NameResolutionError():
            return "its host name is not known"
        case TimedOut() if not isinstance(reason, NewConnectionError):  # which is one, too
            return "no answer in time"
        case _:
            return line(reason.__cause__ or reason)


def line(error: object) -> str:
    """Return an error's text on one line, without Python's `<object at 0x...>: `."""
    return re.sub(r"<[^>]*>:? ?", "", " ".join(str(error).split()))
