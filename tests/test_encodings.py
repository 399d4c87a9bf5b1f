"""The cache of latents: shared by workers and runs, trusted only where it is whole."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jobs import layout
from jobs.encodings import SHARD_FILE, Cache, Shard, Shelf, content_key, pack, unpack
from jobs.environment import Environment, Worker
from jobs.errors import Stopped
from jobs.gang import Gang
from jobs.outbox import Outbox

KEYS = [content_key({"shard": number}) for number in range(5)]
PER_SHARD = 3


def environment(tmp_path: Path, run: str) -> Environment:
    return Environment(
        spec="", run=run, store=str(tmp_path / "store"), uid="u", work=tmp_path / run
    )


def rows(number: int) -> Shard:
    """Stand for the encoders: numbers that tell shard and place."""
    wide = np.arange(PER_SHARD * 4, dtype=np.float32).reshape(PER_SHARD, 2, 2) + 100 * number
    ids = np.full((PER_SHARD, 5), number, np.int32)
    return Shard({"wide": wide, "ids": ids}, {"long": number})


class Counted:
    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __call__(self, number: int) -> Shard:
        self.numbers.append(number)
        return rows(number)


def shelve(env: Environment) -> tuple[Shelf, Cache, list[int]]:
    made = Counted()
    cache = Cache.open(env, Gang.of(env, Worker(0, 1)))
    return cache.shelve(KEYS, PER_SHARD, made), cache, made.numbers


def everything(shelf: Shelf) -> Iterator[tuple[list[float], list[int]]]:
    for number in range(PER_SHARD * len(KEYS)):
        row = shelf.row(number)
        yield row["wide"].ravel().tolist(), row["ids"].tolist()


EXPECTED = [
    ((np.arange(4) + 4 * (n % PER_SHARD) + 100 * (n // PER_SHARD)).tolist(), [n // PER_SHARD] * 5)
    for n in range(PER_SHARD * len(KEYS))
]


def test_a_second_run_finds_what_the_first_has_made(tmp_path: Path) -> None:
    cold, cache, made = shelve(environment(tmp_path, "one"))
    assert list(everything(cold)) == EXPECTED
    assert (made, cache.tally.found, cache.tally.made) == ([0, 1, 2, 3, 4], 0, 5)
    warm, cache, made = shelve(environment(tmp_path, "two"))
    assert list(everything(warm)) == EXPECTED
    assert (made, cache.tally.found, cache.tally.made) == ([], 5, 0)
    assert warm.fact("long") == cold.fact("long") == 10
    assert all("two" in str(path) for path in warm.paths)


def test_workers_share_the_work_and_see_all_of_it(tmp_path: Path) -> None:
    env = environment(tmp_path, "one")
    found: dict[int, tuple[Shelf, list[int]]] = {}

    def work(rank: int) -> None:
        gang = Gang.of(env, Worker(rank, 2))
        made = Counted()
        cache = Cache.open(env, gang)
        shelf = cache.shelve(KEYS, PER_SHARD, made)
        told = gang.exchange("tally", [rank, cache.tally.made])
        assert told == [[0, 3], [1, 2]]
        assert gang.gather("squares", [n * n for n in gang.share(5)], 5) == [0, 1, 4, 9, 16]
        found[rank] = shelf, made.numbers

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[0][1] == [0, 2, 4]
    assert found[1][1] == [1, 3]
    assert list(everything(found[0][0])) == list(everything(found[1][0])) == EXPECTED
    alone, _, made = shelve(environment(tmp_path, "two"))
    assert (list(everything(alone)), made) == (EXPECTED, [])


def test_the_bytes_of_a_shard_are_a_function_of_its_contents(tmp_path: Path) -> None:
    one = shelve(environment(tmp_path / "a", "one"))[0]
    two = shelve(environment(tmp_path / "b", "one"))[0]
    for left, right in zip(one.paths, two.paths, strict=True):
        assert left.read_bytes() == right.read_bytes()


def spoil(tmp_path: Path, kind: str) -> None:
    """Damage the third shard in the store."""
    folder = tmp_path / "store" / layout.CACHE / "latents" / KEYS[2]
    other = tmp_path / "store" / layout.CACHE / "latents" / KEYS[3]
    path = folder / SHARD_FILE
    if kind == "flipped bit":
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    elif kind == "cut short":
        path.write_bytes(path.read_bytes()[:-7])
    elif kind == "gone":
        path.unlink()
    elif kind == "manifest":
        (folder / layout.MANIFEST).write_text("{}")
    elif kind == "of another key":
        for name in (SHARD_FILE, layout.MANIFEST, layout.COMMITTED):
            (folder / name).write_bytes((other / name).read_bytes())


@pytest.mark.parametrize("kind", ["flipped bit", "cut short", "gone", "manifest", "of another key"])
def test_a_damaged_shard_is_told_made_anew_and_mended(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    shelve(environment(tmp_path, "one"))
    spoil(tmp_path, kind)
    with caplog.at_level(logging.WARNING, "jobs.encodings"):
        again, _, made = shelve(environment(tmp_path, "two"))
    assert made == [2]
    assert list(everything(again)) == EXPECTED
    assert f"latents=ignored key={KEYS[2]}" in caplog.text
    mended, _, made = shelve(environment(tmp_path, "three"))
    assert made == []
    assert list(everything(mended)) == EXPECTED


def test_what_was_not_committed_is_not_used(tmp_path: Path) -> None:
    shelve(environment(tmp_path, "one"))
    (tmp_path / "store" / layout.CACHE / "latents" / KEYS[2] / layout.COMMITTED).unlink()
    spoil(tmp_path, "flipped bit")
    again, _, made = shelve(environment(tmp_path, "two"))
    assert made == [2]
    assert list(everything(again)) == EXPECTED


def test_a_store_that_takes_nothing_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.joinpath("store").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "jobs.encodings"):
        shelf, _, made = shelve(environment(tmp_path, "one"))
    assert made == [0, 1, 2, 3, 4]
    assert list(everything(shelf)) == EXPECTED
    assert caplog.text.count("latents=not-kept") == 1


def test_a_stop_is_heard_between_two_shards(tmp_path: Path) -> None:
    env = environment(tmp_path, "one")
    cache = Cache.open(env, Gang.of(env, Worker(0, 1)))

    def make(number: int) -> Shard:
        if number == 1:
            Outbox(env.work).stop.touch()
        return rows(number)

    with pytest.raises(Stopped):
        cache.shelve(KEYS, PER_SHARD, make)
    _, _, made = shelve(environment(tmp_path, "two"))
    assert made == [2, 3, 4], "what was made before the stop is kept"


HALVES = arrays.arrays(np.float16, (3, 4), elements=st.floats(-65504, 65504, width=16))


@given(HALVES)
def test_numbers_of_a_precision_come_back_as_they_were(halves: np.ndarray) -> None:
    exact = halves.astype(np.float32)
    assert np.array_equal(unpack(pack(exact, "fp32")), exact)
    assert np.array_equal(unpack(pack(exact, "fp16")), exact)
    assert pack(exact, "fp16").itemsize == pack(exact, "bf16").itemsize == 2
    brain = (exact.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    assert np.array_equal(unpack(pack(brain, "bf16")), brain)
    ids = np.arange(4, dtype=np.int32)
    assert unpack(ids).dtype == np.int32
