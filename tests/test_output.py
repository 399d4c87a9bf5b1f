from __future__ import annotations

import json

import pytest
import yaml

from launcher import errors, output


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (-3, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (3600, "1h 00m"), (90061, "1d 01h")],
)
def test_durations(seconds, text):
    assert output.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (31 * 2**30, "31.0 GiB"),
        (2**42, "4096.0 GiB"),
    ],
)
def test_sizes(count, text):
    assert output.size(count) == text


NASTY = "a\x1b]0;owned\x07\x9b31m\u202eb \u2603\u3000c"


def test_what_a_terminal_would_obey_is_not_shown(capfdbinary):
    output.data(NASTY)
    output.say(NASTY)
    output.error(NASTY, NASTY)
    out, err = capfdbinary.readouterr()
    shown = "a\ufffd]0;owned\ufffd\ufffd31m\ufffdb \u2603\u3000c\n".encode()
    assert out == shown
    assert err.startswith(shown)
    assert not any(sign in out + err for sign in (b"\x1b", b"\x07", "\x9b".encode()))


def test_json_says_exactly_what_it_was_given(capfdbinary):
    output.as_json({"reason": NASTY})
    out, _ = capfdbinary.readouterr()
    assert json.loads(out) == {"reason": NASTY}
    assert "\x9b".encode() not in out


def test_a_table_is_aligned_and_has_no_loose_ends():
    assert output.table(("A", "BB"), [("long", ""), ("x", "y")]) == "A     BB\nlong\nx     y"


def test_an_error_is_one_line_and_a_hint(capfdbinary):
    code = output.failure(errors.NameTaken("run 'x':\nis taken\t\u2603", "choose\nanother"))
    assert code == 73
    assert (
        capfdbinary.readouterr().err
        == "error: run 'x': is taken \u2603\nhint: choose another\n".encode()
    )


def test_each_exit_code_has_one_class():
    classes = errors.LauncherError.__subclasses__()
    assert sorted(cls.code for cls in classes) == [2, 66, 69, 70, 73, 77, 78]
    assert all(
        f"{cls.code}" in errors.__doc__ and cls.__name__ in errors.__doc__ for cls in classes
    )


def test_a_manifest_that_is_printed_says_what_it_says(capfd):
    document = {"a": "x\x85y", "b": "two\u2028lines", "c": {"$(X)": ["caf\xe9 " * 40]}}
    output.as_document(document, "yaml")
    assert yaml.safe_load(capfd.readouterr().out) == document
