"""Owns how the launcher talks: data on stdout, words on stderr, one line an error.

Must not decide anything and must not read records.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from launcher.errors import LauncherError

PIPE_CLOSED = 141
"""What a shell reports for a program that SIGPIPE ended: the reader of our data went away."""


_CONTROLS = {*range(32), *range(127, 160)} - {ord("\n"), ord("\t")}
_BIDIRECTIONAL = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_ESCAPED = {code: f"\\u{code:04x}" for code in _CONTROLS | _BIDIRECTIONAL}
_UNSHOWN = dict.fromkeys(_CONTROLS | _BIDIRECTIONAL, "\ufffd")
"""What a terminal would obey or reorder; events, termination messages and records may hold it."""


class ReaderGone(Exception):
    """Nobody reads stdout any more; told to nobody, since it is the reader's own choice."""


def data(text: str) -> None:
    """Write one line (or several) of data to stdout at once.

    Raises:
        ReaderGone: the reader has closed the pipe.
    """
    line = f"{text}\n".translate(_UNSHOWN)
    raw(line.encode(sys.stdout.encoding or "utf-8", errors="backslashreplace"))


def raw(chunk: bytes) -> None:
    """Write bytes, such as a job's log, to stdout at once.

    Raises:
        ReaderGone: the reader has closed the pipe.
    """
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        # Python flushes stdout once more at its end, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ReaderGone from error


def raw_aside(chunk: bytes) -> None:
    """Write bytes to stderr at once."""
    sys.stderr.flush()
    sys.stderr.buffer.write(chunk)
    sys.stderr.buffer.flush()


def say(text: str) -> None:
    """Write one line for people to stderr."""
    line = f"{text}\n".translate(_UNSHOWN)
    raw_aside(line.encode(sys.stderr.encoding or "utf-8", errors="backslashreplace"))


def as_json(document: object) -> None:
    """Write a document to stdout as indented JSON."""
    import json

    data(json.dumps(document, indent=2, ensure_ascii=False).translate(_ESCAPED))


def as_document(document: object, form: str) -> None:
    """Write a document to stdout as `yaml` or `json`."""
    if form == "json":
        as_json(document)
        return
    data(to_yaml(document).rstrip("\n"))


def to_yaml(document: object) -> str:
    """Return a document as YAML; the same bytes for the same document on every machine."""
    import yaml

    # Python's emitter: libyaml's breaks lines elsewhere, and not every machine has it.
    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        # Double quotes escape what single ones lose: PyYAML takes U+0085 for a line break and
        # folds it away, so that what is read is not what was written.
        style = None if value.isprintable() else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    found: str = yaml.dump(
        document,
        Dumper=Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=float("inf"),
    )
    return found


def error(text: str, hint: str = "", rows: Iterable[str] = ()) -> None:
    """Write `error: ...`, its rows and, where there is one, `hint: ...`, each on one line."""
    say(f"error: {_line(text)}")
    for row in rows:
        say(f"  {_line(row)}")
    if hint:
        say(f"hint: {_line(hint)}")


def failure(problem: LauncherError) -> int:
    """Tell a planned failure and return its exit code."""
    error(problem.text, problem.hint, problem.rows)
    return problem.code


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return left-aligned columns, two blanks apart."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def duration(seconds: float) -> str:
    """Return a span of time as its two largest units: 45s, 3m 20s, 2h 05m, 1d 04h."""
    whole = max(0, round(seconds))
    for size, name, below, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size}{name} {whole % size // below:02d}{small}"
    return f"{whole}s"


def size(count: int) -> str:
    """Return a number of bytes for people: 512 B, 1.5 KiB, 31.0 GiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def counted(count: int, thing: str) -> str:
    """Return a number of things: 1 file, 2 files."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _line(text: str) -> str:
    return " ".join(text.split())


def printable(text: str) -> str:
    """Return the text without what a terminal obeys, such as a log or a record may hold."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
