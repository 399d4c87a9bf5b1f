"""One pod's log, read to the last line through rotations, cuts, outages and a copy that lags.

The node of these tests serves as a kubelet does: the newest file alone, whole seconds, a stream
that stays on a file that was rotated away or passes over a whole one. tests/cluster has a real API
server before it, tests/e2e a real kubelet.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launcher import loglines
from launcher.backends.podlogs import Away, Gone, Idle, State
from launcher.loglines import SECOND, Choice, Gap, Line, Seen
from launcher.podreader import Reader

START = 1_700_000_000
STARTED = START - 10
"""When the container was: long enough before its first line for its node to have rotated since."""
BEGIN = b"2023-11-14T22:13:20Z I jobs.runtime jobs=0.1.0 run=r kind=train spec=abc"
END = b"2023-11-14T22:20:00Z I jobs.runtime exit=0 results are committed and verified"


@dataclass
class World:
    """A pod that prints, the node it is on and the store; time passes when the reader waits."""

    rows: Sequence[tuple[int, bytes]]
    """(ns after the one before, text) of each line."""
    seed: int
    rotate_every: int = 10**9
    """Lines that make a file of the node full; it looks every 3 s, as a kubelet does at most."""
    upload_seconds: float = 1.0
    has_copy: bool = True
    trouble: float = 0.0
    """How likely a request fails, and a stream ends early or goes wrong."""
    lag: int = 2_000_000
    """Most ns between the copy's stamp of a line and the node's."""
    gone_after: int = 10**9
    """Seconds after the end of the pod at which it is gone from the cluster."""
    now: float = 0.0
    said: list[str] = field(default_factory=list)
    cut: bool = False

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        when, node = START * SECOND, 0
        self.copied: list[Line] = []
        self.served: list[Line] = []
        for wait, text in self.rows:
            when += wait
            node = max(node, when + self.random.randint(0, self.lag))
            self.copied.append(Line(when, text))
            self.served.append(Line(node, text))
        self.end = self.served[-1].when / SECOND - START
        self.cuts = [(0.0, 0)]
        """When each file was begun, and with which line."""
        for tick in range(3, int(self.end) + 1, 3):
            count = self.printed(tick)
            if count - self.cuts[-1][1] >= self.rotate_every:
                self.cuts.append((tick, count))

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def printed(self, now: float) -> int:
        """Return how many lines there are by then."""
        return bisect_right(self.served, (START + now) * SECOND, key=lambda line: line.when)

    def newest(self) -> int:
        """Return with which line the newest file begins."""
        return max(at for when, at in self.cuts if when <= self.now)

    def file(self) -> list[Line]:
        """Return the newest file."""
        return self.served[self.newest() : self.printed(self.now)]

    def _may_fail(self) -> None:
        self.now += 0.01
        if self.state_now() == "gone":
            raise Gone("no such pod")
        if self.random.random() < self.trouble:
            self.now += self.random.choice((0.1, 3, 30))
            raise Away("connection refused")

    # What the reader asks of a node.
    def read(self, since: int | None = None, *, last: bool = False) -> list[Line]:
        self._may_fail()
        lines = [line for line in self.file() if line.when >= (since or 0) * SECOND]
        # Now and then an answer is cut short, and looks complete: the API server's to its node was.
        self.cut = not self.cut and self.random.random() < self.trouble
        return lines[: self.random.randint(0, len(lines))] if self.cut else lines

    def head(self) -> int | None:
        self._may_fail()
        return self.file()[0].when if self.file() else None

    def state_now(self) -> State:
        if self.now > self.end + self.gone_after:
            return "gone"
        return "over" if self.now > self.end else "running"

    def state(self) -> State:
        if self.random.random() < self.trouble:
            raise Away("connection refused")
        return self.state_now()

    def follow(self, since: int | None) -> Iterator[list[Line]]:
        self._may_fail()
        at = self.newest()
        while True:
            count = self.printed(self.now)
            ends = [cut for when, cut in self.cuts if at < cut and when <= self.now]
            upto = min(count, at + self.random.randint(1, 5), *ends)
            if lines := [x for x in self.served[at:upto] if x.when >= (since or 0) * SECOND]:
                yield lines
            at = upto
            if at in ends and self.trouble:
                match self.random.randrange(4):
                    case 0:
                        self.now += 30
                        raise Idle  # it hangs on the file that was rotated away
                    case 1:
                        at = self.newest()  # it passes over whole files
            if self.random.random() < self.trouble / 3:
                self.now += self.random.choice((1, 7))  # whoever reads is slow
            if at == count:
                if self.state_now() != "running":
                    return
                self.now += 0.3
            if self.random.random() < self.trouble / 5:
                self.now += self.random.choice((0, 1, 20))
                if self.random.random() < 0.5:
                    return  # ended by somebody between, as if all were well
                raise Away("reset")

    # What the reader asks of the copy.
    @property
    def there(self) -> bool:
        return self.has_copy

    def lines(self) -> list[Line]:
        if not self.has_copy:
            return []
        over = self.now > self.end
        sent = self.end + 1 if over else self.now // self.upload_seconds * self.upload_seconds
        return [line for line in self.copied if line.when <= (START + sent) * SECOND]

    def after(self, tail: Sequence[Line]) -> list[Line] | None:
        lines = self.lines()
        at = loglines.place(tail, lines) if tail else 0
        return None if at is None else lines[at:]

    def all_read(self, *, follow: bool = True, since: int | None = None) -> list[bytes]:
        def trouble(_problem: Away | None) -> None:
            assert self.now < self.end + 10_000, "it never ends"

        reader = Reader(
            self, self, STARTED, self.said.append, trouble, since=since,
            sleep=self.sleep, clock=lambda: self.now,
        )  # fmt: skip
        return [line.text for batch in reader.batches(follow=follow) for line in batch.lines]


def numbered(count: int, wait: int = SECOND // 20) -> list[tuple[int, bytes]]:
    rows = [(wait, b"[0] line %d" % number) for number in range(count)]
    return [(1, BEGIN), *rows, (wait, END)]


def texts(rows: Sequence[tuple[int, bytes]]) -> list[bytes]:
    return [text for _, text in rows]


def test_a_quiet_world_is_read_once_and_whole() -> None:
    world = World(numbered(500), seed=1)
    assert world.all_read() == texts(world.rows)
    assert world.said == []


waits = st.sampled_from((0, 1, 1_000, 40_000_000, SECOND // 3, 2 * SECOND, 15 * SECOND))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(waits, max_size=120),
    st.integers(0, 2**32),
    st.sampled_from((3, 7, 20, 10**9)),
    st.sampled_from((1.0, 10.0)),
    st.sampled_from((0.0, 0.1, 0.4)),
    st.sampled_from((10**9, 30, 0)),
    st.booleans(),
)
@example([SECOND] * 40, 3, 7, 10.0, 0.4, 0, False)
@example([SECOND] * 40, 212, 3, 10.0, 0.4, 10**9, True)
def test_with_a_copy_no_line_is_lost_or_repeated_whatever_happens(
    pauses: list[int],
    seed: int,
    files: int,
    upload: float,
    trouble: float,
    gone: int,
    killed: bool,
) -> None:
    rows = [(wait, b"[0] line %d" % number) for number, wait in enumerate(pauses)]
    rows = [(1, BEGIN), *rows, *([] if killed else [(1, END)])]
    world = World(
        rows, seed, rotate_every=files, upload_seconds=upload, trouble=trouble, gone_after=gone
    )
    assert world.all_read() == texts(rows)
    assert world.said == []


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from((0.0, 0.2, 0.5)))
def test_without_rotation_no_copy_is_needed(seed: int, trouble: float) -> None:
    world = World(numbered(200), seed, has_copy=False, trouble=trouble)
    assert world.all_read() == texts(world.rows)
    assert world.said == []


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_lines_that_repeat_themselves_are_each_told_as_often_as_they_were(seed: int) -> None:
    rows = [(1, BEGIN)]
    for number in range(150):
        rows += [(SECOND // 10, b""), (0, b"[0] line %d" % number), (0, b"[0] ---")]
    world = World([*rows, (1, END)], seed, rotate_every=50, trouble=0.2)
    assert world.all_read() == [*texts(rows), END]


def test_without_a_copy_a_gap_is_told_and_nothing_is_repeated() -> None:
    for seed in range(20):
        world = World(numbered(400), seed, rotate_every=60, has_copy=False, trouble=0.3)
        found = world.all_read()
        numbers = [int(text.split()[-1]) for text in found if text.startswith(b"[0]")]
        assert numbers == sorted(set(numbers))
        assert len(numbers) == 400 or world.said


def test_a_beginning_that_was_rotated_away_comes_from_the_copy() -> None:
    world = World(numbered(400), seed=1, rotate_every=100)
    world.now = 17.0  # in the middle of a later file
    assert world.all_read() == texts(world.rows)
    assert world.all_read(follow=False) == texts(world.rows)


def test_a_beginning_that_nobody_has_is_told() -> None:
    world = World(numbered(400), seed=1, rotate_every=100, has_copy=False)
    world.now = 17.0
    assert world.all_read()[-1] == END
    assert any("rotated the beginning away" in told for told in world.said)


def test_what_is_read_since_a_moment_crosses_files_too() -> None:
    world = World(numbered(400), seed=1, rotate_every=100)
    world.now = 17.0
    found = world.all_read(since=START + 10)
    late = [line.text for line in world.served if line.when >= (START + 10) * SECOND]
    assert found[-len(late) :] == late


def test_a_pod_that_was_gone_before_anyone_looked_is_in_the_copy() -> None:
    world = World(numbered(50), seed=1, gone_after=0)
    world.now = world.end + 5
    assert world.all_read() == texts(world.rows)


def test_an_idle_pod_whose_file_was_just_rotated_is_not_told_to_miss_lines() -> None:
    rows = [(SECOND // 10, b"[0] line %d" % number) for number in range(98)]
    world = World([(1, BEGIN), *rows, (1, b"x"), (900 * SECOND, END)], seed=1, rotate_every=100)
    world.now = 60.0
    assert world.all_read()[-2:] == [b"x", END]
    assert world.said == []


def test_a_node_that_has_removed_the_log_is_not_asked_for_ever(monkeypatch) -> None:
    world = World(numbered(50), seed=1)
    world.now = world.end + 5

    def read(since=None, *, last=False):
        raise Away("no such file", answered=True)

    monkeypatch.setattr(world, "read", read)
    assert world.all_read() == texts(world.rows)


@pytest.mark.parametrize(
    ("row", "when"),
    [
        (b"2023-11-14T22:13:20.123456789Z a  b ", START * SECOND + 123456789),
        (b"2023-11-15T06:13:20.5+08:00 a  b ", START * SECOND + SECOND // 2),
        (b"2023-11-14T22:13:20Z a  b ", START * SECOND),
    ],
)
def test_stamps_of_every_kind_of_node_are_read(row: bytes, when: int) -> None:
    assert loglines.parsed(row) == Line(when, b"a  b ")


def test_a_row_without_a_stamp_goes_on_from_the_row_before_and_none_begins_with_it() -> None:
    rows = [b"tail of a long line", b"2023-11-14T22:13:20Z", b"no stamp"]
    assert [line.text for line in loglines.all_parsed(rows)] == [b"", b"no stamp"]


def test_equal_stamps_and_lines_that_came_across_are_known_again() -> None:
    lines = [Line(5 * SECOND + n, b"line %d" % n) for n in (0, 3, 3, 1, 3)]
    lines = [*lines[:4], Line(lines[4].when, b"other")]
    seen = Seen()
    seen.take(lines[:3])
    seen.take(lines[3:])
    assert seen.since == 4
    assert seen.unseen(lines) == []
    assert seen.unseen([*lines, Line(6 * SECOND, b"new")]) == [Line(6 * SECOND, b"new")]
    assert seen.unseen(lines[3:]) == []  # the file was rotated within that second
    with pytest.raises(Gap):
        seen.unseen([Line(6 * SECOND, b"new")])


def test_the_choice_of_lines() -> None:
    lines = [
        Line(1, b"2023 I jobs.runtime exit=0"), Line(2, b"[1] loss=3"), Line(3, b"[11] loss=4"),
        Line(4, b"[1] \xff"),
    ]  # fmt: skip
    assert Choice(rank=1).of(lines) == [lines[1], lines[3]]
    assert Choice(since=3).of(lines) == lines[2:]
    assert Choice(grep=re.compile(r"loss=\d")).of(lines) == lines[1:3]
    assert Choice(rank=1, grep=re.compile("loss")).of(lines) == [lines[1]]
    assert loglines.printed(lines[1:2], b"node-0 | ") == b"node-0 | [1] loss=3\n"


def test_a_copy_that_stands_still_does_not_hold_the_log_back_for_ever(monkeypatch) -> None:
    world = World(numbered(20_000), seed=4, rotate_every=60)
    monkeypatch.setattr(world, "lines", lambda: world.copied[:100])
    world.now = 100.0
    found = world.all_read()
    assert found[:100] == texts(world.rows)[:100]
    assert found[-1] == END
    assert any("may be missing" in told for told in world.said)


def lines_at(*seconds: int) -> list[Line]:
    return [Line((START + second) * SECOND, b"[0] line %d" % second) for second in seconds]


@pytest.mark.parametrize(("times", "expected"), [((0, 100), 5), ((-100, 0), 10), ((100, 0), 10)])
def test_of_two_places_the_nearer_in_time_is_taken(times: tuple[int, int], expected: int) -> None:
    tail = [Line(START * SECOND + n, b"line %d" % n) for n in range(5)]
    window = [Line(line.when + SECOND // 10 * away, line.text) for away in times for line in tail]
    assert loglines.place(tail, window) == expected


def test_of_two_places_the_one_with_more_of_the_same_is_taken() -> None:
    tail = [Line(START * SECOND + n, b"line %d" % n) for n in range(8)]
    short, far = tail[2:], [Line(line.when + SECOND, line.text) for line in tail]
    assert loglines.place(tail, [*short, *far]) == len(short) + len(far)


@dataclass
class Jumping:
    """A node whose stream passes over a file that was rotated away; all of it is in the copy."""

    there: bool = True
    ended: bool = False

    def __post_init__(self) -> None:
        self.all = [Line(START * SECOND, BEGIN), *lines_at(*range(1, 40)), *lines_at(60)]
        self.all.append(Line((START + 60) * SECOND + 1, END))

    def read(self, since: int | None = None, *, last: bool = False) -> list[Line]:
        file = self.all[-2:] if self.ended else self.all[:5]
        return [line for line in file if line.when >= (since or 0) * SECOND]

    def head(self) -> int | None:
        return self.all[-2].when

    def state(self) -> State:
        return "over" if self.ended else "running"

    def follow(self, since: int | None) -> Iterator[list[Line]]:
        self.ended = True
        first = (since or 0) * SECOND
        yield [line for line in [*self.all[:9], *self.all[-2:]] if line.when >= first]
        # A stream that has passed over lines is left; it might go on for ever.
        assert len(self.all) < 12

    def lines(self) -> list[Line]:
        return self.all

    def after(self, tail: Sequence[Line]) -> list[Line] | None:
        at = loglines.place(tail, self.all) if tail else 0
        return None if at is None else self.all[at:]


@pytest.mark.parametrize("head", ["newer", "none"])
def test_a_stream_that_passes_over_a_file_is_filled_up_from_the_copy(monkeypatch, head) -> None:
    node = Jumping()
    if head == "none":  # the newest file is empty yet
        monkeypatch.setattr(node, "head", lambda: None)
    reader = Reader(
        node, node, START, lambda text: None, lambda problem: None, sleep=lambda seconds: None
    )
    found = [line.text for batch in reader.batches(follow=True) for line in batch.lines]
    assert found == [line.text for line in node.all]


def test_a_pause_of_a_file_that_goes_on_is_no_gap(monkeypatch) -> None:
    node = Jumping()
    monkeypatch.setattr(node, "head", lambda: node.all[0].when)
    node.all = [*node.all[:9], *node.all[-2:]]
    monkeypatch.setattr(node, "there", False)
    monkeypatch.setattr(node, "lines", list)
    monkeypatch.setattr(node, "after", lambda tail: None)
    said: list[str] = []
    reader = Reader(
        node, node, START, said.append, lambda problem: None, sleep=lambda seconds: None
    )
    found = [line.text for batch in reader.batches(follow=True) for line in batch.lines]
    assert (found, said) == ([line.text for line in node.all], [])
