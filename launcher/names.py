"""Owns names: a run's, legal, suggested or fresh; and of other objects, which are legal.

A run's name is the Job's name, a folder of the store and the first part of each pod's host name.
Pure. Must not ask a cluster or a store whether a name is free.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from jobs.layout import CACHE
from launcher.errors import Misconfigured, Usage

LONGEST = 63
"""Characters of a DNS label (RFC 1123, section 2.1); a pod's host name is one."""
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_LONGEST_SUBDOMAIN = 253  # Kubernetes, "Object names and IDs"
_RESERVED = (CACHE,)  # lies beside the runs in the store (jobs.layout)
_SIGNS = "0123456789abcdefghjkmnpqrstvwxyz"  # 32 signs, so a byte maps evenly; no i, l, o, u


def longest(nodes: int) -> int:
    """Return how many characters a run on `nodes` nodes may have.

    The pods of an Indexed Job are called `<name>-<index>`, and the API server refuses a Job whose
    last pod would have no legal host name.
    """
    return LONGEST - len(f"-{nodes - 1}")


def check(name: str, nodes: int = 1) -> None:
    """Check that Job, pods and store can carry `name`.

    Raises:
        Usage: they cannot; the hint suggests a name that is legal.
    """
    room = longest(nodes)
    if not name:
        wrong = "a run needs a name"
    elif not _LABEL.fullmatch(name):
        wrong = "only a-z, 0-9 and inner dashes are allowed"
    elif len(name) > room:
        wrong = f"{len(name)} characters; {room} are allowed, pods append -{nodes - 1} to it"
    elif name in _RESERVED:
        wrong = "the store keeps a folder of that name beside the runs"
    else:
        return
    raise Usage(f"--name {_quoted(name)}: {wrong}", f"--name {suggest(name, nodes)}")


def check_object(
    name: str, where: str, *, dots: bool = True, longest: int = _LONGEST_SUBDOMAIN
) -> None:
    """Check that an object of the cluster can have `name`.

    Args:
        name: of the object.
        where: whose value it is.
        dots: whether labels may be joined by dots: a DNS subdomain, as of Secrets and accounts; a
            namespace is one label.
        longest: characters of a subdomain; 63 where the name is a label's value, too.

    Raises:
        Misconfigured: no object can.
    """
    labels, longest = (name.split("."), longest) if dots else ([name], LONGEST)
    if len(name) > longest or not all(map(_LABEL.fullmatch, labels)):
        signs = "digits, inner dashes and dots" if dots else "digits and inner dashes"
        raise Misconfigured(
            f"{where}: {_quoted(name)} is no name of an object",
            f"lower case letters, {signs}, {longest} at most",
        )


def suggest(name: str, nodes: int = 1) -> str:
    """Return a legal name that resembles `name`; a legal one is returned as it is."""
    legal = re.sub(r"[^a-z0-9-]+", "-", name.lower())[: longest(nodes)].strip("-")
    if not legal:
        return "run"
    return f"{legal}-run" if legal in _RESERVED else legal


def fresh(kind: str, method: str, *, now: datetime, entropy: bytes) -> str:
    """Return a new name such as train-lora-20261123-101500-x7k2; names sort by time.

    Args:
        kind: `train` or `infer`.
        method: what distinguishes runs of one kind; may be empty.
        now: an aware time; told in UTC.
        entropy: a random byte for each sign of the last part, four as a rule.
    """
    time = now.astimezone(UTC).strftime("%Y%m%d-%H%M%S")
    token = "".join(_SIGNS[byte % len(_SIGNS)] for byte in entropy)
    return "-".join(part for part in (kind, method, time, token) if part)


def _quoted(name: str) -> str:
    return repr(name if len(name) <= LONGEST else f"{name[:LONGEST]}...")
