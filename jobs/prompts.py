"""Owns prompt files: bytes -> numbered rows, the rows as JSON lines, which of them are painted.

Pure; must not do I/O. A `.txt` file has one prompt a line; blank lines and lines that start with
`#` do not count as prompts but do count as lines: a picture's noise depends on its prompt's line
number, so a comment can replace a prompt without changing the pictures of the others. A `.jsonl`
file has one object a line, with the keys of PromptRow but `line`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from jobs.errors import BadData, BadSpec
from jobs.specs import PromptRow, problems

Form = Literal["text", "json"]

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SHOWN = 20
"""Findings named in one message; more are counted, so that it stays readable."""
LONGEST_LINE = 32 * 1024
"""Bytes. A prompt is cut after 77 tokens; a longer line is another kind of file."""


def form_of(name: str, data: bytes) -> Form:
    """Return the form of a prompt file: by its name, or without one by its first letter."""
    if name.lower().endswith((".jsonl", ".ndjson")):
        return "json"
    if "." in name.rpartition("/")[2]:
        return "text"
    first = data[: len(_BOM) + LONGEST_LINE].removeprefix(_BOM).lstrip()
    return "json" if re.match(rb'\{\s*"', first) else "text"


def parse(data: bytes, name: str, form: Form = "text") -> Iterator[PromptRow]:
    """Yield the prompts of a file, with their line numbers from 1.

    Args:
        data: the file's bytes; a byte order mark and any line end are accepted.
        name: what messages call the file.
        form: one prompt a line, or one JSON object a line.

    Raises:
        BadData: after the last row: there is no prompt, or lines are bad, and all of them are
            named. What was yielded must not be used then.
    """
    if data.startswith(_UTF16):
        raise BadData(f"{name}: is UTF-16 text, not UTF-8")
    if b"\0" in data:
        offset = data.index(b"\0")
        ends = [end.end() for end in _LINE_END.finditer(data, 0, offset)]
        where = f"byte {offset - (ends[-1] if ends else 0) + 1} of line {len(ends) + 1}"
        raise BadData(f"{name}: is not text: {where} is a zero byte")
    read = _row_of_json if form == "json" else _row_of_text
    found = Findings()
    count = 0
    for number, line in enumerate(_lines(data.removeprefix(_BOM)), start=1):
        try:
            row = read(line, number)
        except _Bad as error:
            found.add(number, str(error))
            continue
        if row is not None:
            count += 1
            yield row
    found.raise_for(name)
    if not count:
        what = "" if form == "json" else " (blank lines and lines with # do not count)"
        raise BadData(f"{name}: holds no prompt{what}")


class BadLines(BadData):
    """Several lines of a file are bad; the text names the first ones and counts the others."""

    count: int = 0
    rows: Sequence[str] = ()
    """What the text names, one by one."""


class _Bad(Exception):
    """What is wrong with one line."""


class Findings:
    """What is wrong with a file, line by line; the first ones in words, all of them counted."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.count = 0

    def add(self, line: int, what: str) -> None:
        """Note a bad line."""
        self.count += 1
        if self.count <= _SHOWN:
            self.shown.append(f"line {line}: {what}")

    def raise_for(self, name: str) -> None:
        """End with all that was found.

        Raises:
            BadData: there was something; BadLines of several lines.
        """
        if not self.count:
            return
        if self.count == 1:
            raise BadData(f"{name}: {self.shown[0]}")
        more = self.count - len(self.shown)
        rows = [*self.shown, *([f"and {more} more bad lines"] if more else ())]
        error = BadLines(f"{name}: {'; '.join(rows)}")
        error.count, error.rows = self.count, rows
        raise error


def _lines(data: bytes) -> Iterator[bytes]:
    """Yield the lines one by one: a list of them would double a large file."""
    start = 0
    for end in _LINE_END.finditer(data):
        yield data[start : end.start()]
        start = end.end()
    yield data[start:]


def _row_of_text(line: bytes, number: int) -> PromptRow | None:
    text = _decoded(line).strip()
    if not text or text.startswith("#"):
        return None
    return PromptRow(line=number, prompt=text)


def _row_of_json(line: bytes, number: int) -> PromptRow | None:
    text = _decoded(line).strip()
    if not text:
        return None
    try:
        found: Any = _JSON.decode(text)
    except json.JSONDecodeError as error:
        raise _Bad(f"is not JSON: {error.msg} at character {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise _Bad("is not JSON that can be read") from error
    if not isinstance(found, dict):
        raise _Bad("is not a JSON object with a prompt")
    if "line" in found:
        raise _Bad("line: unknown key; its place in the file is its number")
    prompt = found.get("prompt")
    if isinstance(prompt, str):
        if "\0" in prompt or "\0" in str(found.get("negative")):
            raise _Bad("holds a zero character")
        found["prompt"] = prompt.strip()
    try:
        return PromptRow.model_validate({**found, "line": number})
    except ValidationError as error:
        raise _Bad(problems(error)) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; of a key that is given twice json would keep the last in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Bad(f"{next(key for key in keys if keys.count(key) > 1)}: is given twice")
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_once)
"""Made once: `json.loads` makes one for each line."""


def _decoded(line: bytes) -> str:
    if len(line) > LONGEST_LINE:
        raise _Bad(f"is {len(line):,} bytes long, and the limit is {LONGEST_LINE:,}")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start + 1} (0x{line[error.start]:02x})"
        raise _Bad(f"is not UTF-8 text at {wrong}") from error


def to_json_line(row: PromptRow) -> bytes:
    """Return the row as it waits in the store, with its line end."""
    return row.model_dump_json().encode() + b"\n"


def to_json_lines(rows: Iterable[PromptRow]) -> bytes:
    """Return the rows as they wait in the store: one JSON object a line."""
    return b"".join(map(to_json_line, rows))


def from_json_lines(data: bytes, name: str) -> tuple[PromptRow, ...]:
    """Return the rows that `to_json_lines` wrote.

    Raises:
        BadData: there is no row, or a line is not one; every bad line is named.
    """
    rows: list[PromptRow] = []
    found = Findings()
    # Not splitlines() of text: JSON leaves U+2028 and its like unescaped inside a string.
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(PromptRow.model_validate_json(line))
        except ValidationError as error:
            found.add(number, problems(error))
    found.raise_for(name)
    if not rows:
        raise BadData(f"{name}: holds no prompt")
    return tuple(rows)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which pictures of a prompt file are painted."""

    ranges: tuple[tuple[int, int], ...] = ()
    """First and last line of each range; without any, and without `single`, all are painted."""
    single: frozenset[tuple[int, int]] = frozenset()
    """(line, image) of pictures that were asked for one by one."""

    def wants(self, line: int, image: int) -> bool:
        """Say whether a picture is to be painted."""
        if not self.ranges and not self.single:
            return True
        return (line, image) in self.single or any(a <= line <= b for a, b in self.ranges)

    def count(self, line: int, images: int) -> int:
        """Return how many of a line's pictures are to be painted."""
        if not self.single:
            return images if self.wants(line, 0) else 0
        return sum(self.wants(line, image) for image in range(images))

    def missing(self, pictures: Iterable[tuple[int, int]]) -> list[str]:
        """Return what names no picture of a file with these lines and numbers of images."""
        images = dict(pictures)
        lines = sorted(images)
        bad = [
            f"{first}" if first == last else f"{first}-{last}"
            for first, last in self.ranges
            if not any(first <= line <= last for line in lines)
        ]
        return bad + [f"{at}.{n}" for at, n in sorted(self.single) if images.get(at, 0) <= n]


def selection(only: str | None) -> Selection:
    """Return what `17,40-42,50.3` selects: lines, ranges of lines, image 3 (from 0) of line 50.

    Raises:
        BadSpec: the text has another form, or a range runs backwards.
    """
    ranges: list[tuple[int, int]] = []
    single: set[tuple[int, int]] = set()
    for part in only.split(",") if only is not None else ():
        found = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9})|\.(\d{1,4}))?\s*", part)
        if found is None:
            raise BadSpec(f"only: {part!r} is no line (17), range (40-42) or picture (17.0)")
        line, last, image = (None if text is None else int(text) for text in found.groups())
        assert line is not None
        if image is not None:
            single.add((line, image))
        elif last is not None and last < line:
            raise BadSpec(f"only: {part.strip()!r} runs backwards")
        else:
            ranges.append((line, last if last is not None else line))
    return Selection(tuple(ranges), frozenset(single))
