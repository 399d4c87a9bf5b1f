"""Owns prompt files: bytes -> numbered rows, and the rows as JSON lines. Pure; must not do I/O.

A prompt file is UTF-8 text with one prompt a line. Blank lines and lines that start with `#` do not
count as prompts but do count as lines: a picture's noise depends on its prompt's line number, so a
comment can replace a prompt without changing the pictures of the others.
"""

from __future__ import annotations

import json
import re

from pydantic import ValidationError

from jobs.errors import BadData
from jobs.specs import PromptRow, problems

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SHOWN = 8
"""Findings named in one message; more are counted, so that the line stays readable."""


def parse(data: bytes, name: str) -> tuple[PromptRow, ...]:
    """Return the prompts of a text file, with their line numbers from 1.

    Args:
        data: the file's bytes; a byte order mark and any line end are accepted.
        name: what messages call the file.

    Raises:
        BadData: there is no prompt, or the file is not UTF-8 text; every bad line is named.
    """
    if data.startswith(_UTF16):
        raise BadData(f"{name}: is UTF-16 text, not UTF-8")
    if b"\0" in data:
        offset = data.index(b"\0")
        number = len(_LINE_END.findall(data[:offset])) + 1
        raise BadData(f"{name}: is not text: line {number} holds a zero byte (at byte {offset})")
    rows: list[PromptRow] = []
    bad: list[str] = []
    lines: list[bytes] = _LINE_END.split(data.removeprefix(_BOM))
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            bad.append(f"line {number}, byte {error.start + 1} (0x{line[error.start]:02x})")
            continue
        if text and not text.startswith("#"):
            rows.append(PromptRow(line=number, prompt=text))
    if bad:
        raise BadData(f"{name}: is not UTF-8 text: {_some(bad)}")
    if not rows:
        raise BadData(f"{name}: holds no prompt (blank lines and lines with # do not count)")
    return tuple(rows)


def to_json_lines(rows: tuple[PromptRow, ...]) -> bytes:
    """Return the rows as they wait in the store: one JSON object a line."""
    return b"".join(row.model_dump_json().encode() + b"\n" for row in rows)


def from_json_lines(data: bytes, name: str) -> tuple[PromptRow, ...]:
    """Return the rows that `to_json_lines` wrote.

    Raises:
        BadData: there is no row, or a line is not one; every bad line is named.
    """
    rows: list[PromptRow] = []
    bad: list[str] = []
    # Not splitlines(): JSON leaves U+2028 and its like unescaped inside a string.
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(PromptRow.model_validate(json.loads(line)))
        except ValidationError as error:
            bad.append(f"line {number} ({problems(error)})")
        except ValueError:
            bad.append(f"line {number} (not JSON)")
    if bad:
        raise BadData(f"{name}: is not a list of prompts: {_some(bad)}")
    if not rows:
        raise BadData(f"{name}: holds no prompt")
    return tuple(rows)


def _some(findings: list[str]) -> str:
    more = len(findings) - _SHOWN
    return "; ".join(findings[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
