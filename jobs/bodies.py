"""Owns what is made of the answer to a GET of a range: where it begins, how it is read, its end.

Must not ask for one, nor know where its bytes go.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable, Mapping
from typing import Any

from jobs.parts import CHUNK, tag_of
from jobs.s3faults import Away

_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


def frame(answer: Mapping[str, Any], at: int, place: str) -> tuple[int, int]:
    """Return where an answer's body begins in the object, and the object's size.

    Raises:
        Away: it does not say so, or begins behind what was asked for.
    """
    told = _RANGE.fullmatch(str(answer.get("ContentRange", "")))
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    length = answer.get("ContentLength")
    if not tag_of(answer):
        raise Away(f"{place}: the answer was cut")
    if told and int(told[1]) == at:
        return at, int(told[2])
    if status == 200 and length is not None and "ContentRange" not in answer:
        return 0, int(length)  # a server that knows no ranges sends all, each time
    raise Away(f"{place}: the answer is another range than was asked for")


def reader(body: Any) -> Callable[[memoryview], int]:
    """Return what reads a body into memory; past urllib3, whose readinto copies all twice."""
    answer = getattr(getattr(body, "_raw_stream", None), "_fp", None)
    if isinstance(answer, http.client.HTTPResponse) and answer.length is not None:
        return answer.readinto
    readinto: Callable[[memoryview], int] = body.readinto
    return readinto


def leave(body: Any) -> None:
    """Keep the connection for the next request if all of the body was read, else close it."""
    raw = getattr(body, "_raw_stream", None)
    answer = getattr(raw, "_fp", None)
    if raw is not None and isinstance(answer, http.client.HTTPResponse) and answer.isclosed():
        raw.release_conn()
    else:
        body.close()


def skip(body: Any, length: int) -> None:
    """Read past that many bytes of a body."""
    while length and (passed := len(body.read(min(length, CHUNK)))):
        length -= passed


def is_empty(error: Exception) -> bool:
    """Say whether a range was refused because the object has no byte."""
    answer = getattr(error, "response", None)
    return isinstance(answer, dict) and answer.get("Error", {}).get("Code") in (
        "InvalidRange",
        "416",
    )
