from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.durations import LONGEST, seconds
from launcher.errors import Usage


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("90s", 90),
        ("90m", 5400),
        ("8h", 28800),
        ("7d", 604800),
        ("1d12h", 129600),
        ("1h30m5s", 5405),
    ],
)
def test_what_people_type(text: str, wanted: int) -> None:
    assert seconds(text, "--ttl") == wanted


@given(st.integers(0, 9), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_parts_add_up(days: int, hours: int, minutes: int, left: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + left
    assert seconds(f"{days}d{hours}h{minutes}m{left}s", "--ttl", least=0) == total


def test_nothing_at_all_may_be_meant() -> None:
    assert seconds("0", "--ttl", least=0) == seconds("0s", "--ttl", least=0) == 0
    assert seconds("3650d", "--ttl") == LONGEST < 2**31


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no duration"), ("8", "is no duration"), ("8 h", "is no duration"),
        ("-8h", "is no duration"), ("1.5h", "is no duration"), ("h", "is no duration"),
        ("5m2h", "is no duration"), ("8H", "is no duration"), ("\u0668h", "is no duration"),
        ("0", "is too short"), ("0h", "is too short"), ("3651d", "is more than ten years"),
        ("9999999999d", "is no duration"),
    ],
)  # fmt: skip
def test_what_is_none_is_told_with_the_flag(text: str, told: str) -> None:
    with pytest.raises(Usage, match=told) as caught:
        seconds(text, "--max-duration")
    assert caught.value.text == f"--max-duration {text!r}: {told}"
    assert caught.value.hint == "--max-duration wants a number with its unit: 90m, 8h, 7d or 1d12h"
