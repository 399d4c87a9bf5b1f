"""Faults of an S3 server or of the road to it, as data: which requests, what happens to them.

Must not act: faultproxy.py does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Literal
from urllib.parse import parse_qs

EVER = 1 << 30

Kind = Literal[
    "answer",  # an answer of the proxy's own; nothing is passed on
    "close",  # the connection is closed without an answer; nothing is passed on
    "cut",  # half of the request's body is passed on, then both sides are closed
    "truncate",  # half of the answer's body, then the connection is closed
    "behead",  # the answer ends after `at` bytes, headers counted
    "wrong",  # one byte of the answer's body is another
    "corrupt",  # one byte of the request's body is another
    "swallow",  # 200 with a plausible ETag; nothing is passed on
    "delay",  # passed on after `seconds`
    "hang",  # no answer for `seconds`, then the connection is closed; nothing is passed on
    "lose",  # passed on, and the answer is lost
]


@dataclass
class Fault:
    """What happens to requests `first`, ... (from 1) of those that match, `times` of them."""

    kind: Kind
    method: str = ""
    """Regular expression of the whole method; empty: any."""
    key: str = ""
    """Regular expression searched in /bucket/key, unquoted."""
    query: str = ""
    """Regular expression searched in the query as sent, such as `partNumber=2`."""
    first: int = 1
    times: int = 1
    status: int = 503
    code: str = ""
    """For an answer: the S3 error code; empty: a body that is not XML."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """For an answer: its body, instead of one made of `code`."""
    seconds: float = 0.0
    at: int = 40
    seen: int = 0
    """Matching requests until now."""

    def matches(self, method: str, key: str, query: str) -> bool:
        """Say whether it is about such a request."""
        return bool(
            re.fullmatch(self.method or ".*", method)
            and re.search(self.key, key)
            and re.search(self.query, query)
        )

    @property
    def done(self) -> int:
        """How many requests it has been done to."""
        return min(max(self.seen - self.first + 1, 0), self.times)


def slow_down(**match: object) -> Fault:
    """Return S3's own way of saying that it is too much."""
    return Fault("answer", code="SlowDown", **match)  # type: ignore[arg-type]


def skewed(**match: object) -> Fault:
    """Return the answer to a request whose clock is wrong: the server's clock is in its Date."""
    return Fault(
        "answer",
        status=403,
        code="RequestTimeTooSkewed",
        headers={"Date": formatdate(usegmt=True)},
        **match,  # type: ignore[arg-type]
    )


@dataclass
class Passed:
    """One request: what of it went on to the server, and what was answered (0: nothing)."""

    method: str
    key: str
    """/bucket/key, unquoted."""
    query: str
    fault: str = ""
    sent: int = 0
    """Bytes of its body that were passed on."""
    status: int = 0
    received: int = 0
    """Bytes of the server's answer that were given back."""
    headers: dict[str, str] = field(default_factory=dict)
    """The request's, with names in small letters."""

    @property
    def part(self) -> int:
        """The part's number; 0: no part of a multipart upload."""
        return int(parse_qs(self.query).get("partNumber", ["0"])[0])
