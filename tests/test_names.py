from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import Usage
from launcher.names import check, fresh, longest, suggest

NODES = st.integers(1, 1000)
TIMES = st.integers(1_600_000_000, 4_000_000_000).map(lambda s: datetime.fromtimestamp(s, UTC))
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123, as Kubernetes writes it


def legal(name: str, nodes: int) -> bool:
    try:
        check(name, nodes)
    except Usage:
        return False
    return True


@given(st.text(st.sampled_from("ab09-_.A "), max_size=70) | st.text(max_size=70), NODES)
def test_a_legal_name_gives_every_pod_a_host_name(name: str, nodes: int) -> None:
    hosts = (f"{name}-{index}" for index in (0, nodes - 1))
    expected = bool(LABEL.fullmatch(name)) and all(LABEL.fullmatch(host) for host in hosts)
    assert legal(name, nodes) == (expected and name != "cache")


@given(st.text(max_size=80), NODES)
def test_what_is_suggested_is_legal_and_stays_as_it_is(name: str, nodes: int) -> None:
    offered = suggest(name, nodes)
    check(offered, nodes)
    assert suggest(offered, nodes) == offered
    if legal(name, nodes):
        assert offered == name


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("My_Cat", "--name my-cat"),
        ("-cat-", "--name cat"),
        ("", "--name run"),
        ("cache", "--name cache-run"),
        ("a" * 62, f"--name {'a' * 61}"),
        ("cat\n", "--name cat"),
    ],
)
def test_an_illegal_name_is_told_with_a_legal_one(name: str, hint: str) -> None:
    with pytest.raises(Usage) as caught:
        check(name)
    assert caught.value.hint == hint
    assert "\n" not in caught.value.text


def test_the_index_of_the_last_pod_counts() -> None:
    assert longest(1) == longest(10) == 61
    assert longest(11) == longest(100) == 60


@given(TIMES, st.binary(min_size=4, max_size=4))
def test_a_fresh_name_is_legal_for_a_thousand_nodes(now: datetime, entropy: bytes) -> None:
    for kind, method in (("train", "lora-te"), ("infer", "")):
        check(fresh(kind, method, now=now, entropy=entropy), 1000)


@given(TIMES, TIMES, st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4))
def test_fresh_names_sort_by_time(a: datetime, b: datetime, x: bytes, y: bytes) -> None:
    names = [fresh("train", "lora", now=now, entropy=e) for now, e in ((a, x), (b, y))]
    if abs(a - b) >= timedelta(seconds=1):
        assert (names[0] < names[1]) == (a < b)


def test_a_fresh_name_reads_well() -> None:
    now = datetime(2026, 11, 23, 12, 15, tzinfo=timezone(timedelta(hours=2)))
    name = fresh("train", "lora", now=now, entropy=b"\x1d\x07\xf3\x02")
    assert name == "train-lora-20261123-101500-x7k2"
    assert fresh("infer", "", now=now, entropy=b"") == "infer-20261123-101500"


def test_every_sign_of_a_fresh_name_is_as_likely() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    tokens = fresh("x", "", now=now, entropy=bytes(range(256))).rpartition("-")[2]
    assert {tokens.count(sign) for sign in set(tokens)} == {8}
