"""Painting over several nodes: each does its share alone, and who is last makes the result."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import attempt, claims, layout, results, shares, sync, verdict
from jobs.attempt import Attempt
from jobs.environment import Environment
from jobs.errors import BadData, BadSpec, PicturesFailed, Stopped, Unavailable
from jobs.outbox import Outbox
from jobs.rows import known_rows
from jobs.specs import InferSpec, PromptRow
from jobs.stopping import StopRequest
from jobs.stores import Entry, FileStore
from jobs.sync import Uploader
from jobs.working import World

SPEC = InferSpec(prompts=tuple(PromptRow(line=n, prompt="x") for n in (1, 2, 3, 4)))


class Node:
    """A node of two with one worker: what its processes do, done here."""

    def __init__(self, root: Path, index: int) -> None:
        self.env = Environment(
            spec="", run="r", store=str(root / "store"), uid="u", work=root / f"work-{index}",
            device="CPU", nodes=2, index=index,
        )  # fmt: skip
        self.stop, self.lines = StopRequest(), [index + 1, index + 3]
        self.before = 0

    def begin(self) -> None:
        self.attempt = attempt.prepare(self.env, SPEC, self.stop)
        self.before = self.attempt.restored
        self.uploader = Uploader(
            self.attempt.store, "r", Outbox(self.env.work), self.attempt.claim, 0.0
        )
        self.uploader.node = self.env.node
        self.uploader.recall()
        verdict.forget_end(self.attempt)

    def paint(self, *lines: int) -> None:
        for line in lines:
            name = layout.picture_name(line, 0)
            self.attempt.outbox.picture(name, b"%d" % line, {"line": line, "image": 0})
        self.uploader.cycle()

    def summarise(self, failures: tuple[dict[str, Any], ...] = ()) -> None:
        painted = len(self.lines) - self.before - len(failures)
        row = {"painted": painted, "failures": failures, "asked": 4, "before": self.before}
        row |= {"cut": 0, "start_s": 1.0, "compile_s": 1.0, "seconds": 2.0, "split": {}}
        self.attempt.outbox.summarise(0, row | {"steps": {}})

    def again(self) -> None:
        """Begin in a new pod."""
        self.env = dataclasses.replace(self.env, work=self.env.work.with_name("again"))
        self.begin()

    def drain(self) -> None:
        self.uploader.finish()

    def finish(self, ended: int = 0) -> None:
        shares.Sharing(2).finish(self.attempt, self, ended)  # type: ignore[arg-type]

    def all(self) -> None:
        self.begin()
        self.do()

    def do(self) -> None:
        self.paint(*self.lines)
        self.summarise()
        self.finish()


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    monkeypatch.setattr(sync, "RECORD_SECONDS", 0.0)
    return [Node(tmp_path, index) for index in range(2)]


def lines(store: FileStore) -> list[int]:
    return [json.loads(row)["line"] for row in known_rows(store, "r")]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_who_is_last_makes_the_result(
    nodes: list[Node], store: FileStore, order: tuple[int, int]
) -> None:
    first, last = (nodes[index] for index in order)
    first.all()
    assert results.finished(first.attempt)
    assert not results.has_result(first.attempt)
    last.all()
    result = json.loads(store.read("r/result.json"))
    assert (result["pictures"], result["asked"], result["failed"]) == (4, 4, [])
    parts = [json.loads(store.read(f"r/nodes/{i}/part.json"))["upload_s"] for i in range(2)]
    assert result["split_s"]["upload"] == pytest.approx(sum(parts) / 2, abs=0.01)
    assert lines(store) == [1, 2, 3, 4]
    assert {json.loads(store.read(f"r/nodes/{i}/claim.json"))["epoch"] for i in range(2)} == {1}


def test_nodes_that_paint_at_once_lose_no_row(nodes: list[Node], store: FileStore) -> None:
    for node in nodes:
        node.begin()
    nodes[0].paint(1)
    nodes[1].paint(2)
    assert lines(store) == [1, 2]
    # Another node that had read less writes last, on a store that lets it.
    store.write("r/manifest.jsonl", known_rows(store, "r", 0)[0].encode() + b"\n")
    nodes[1].paint(4)
    assert lines(store) == [1, 2, 4]
    nodes[0].paint(3)
    for node in nodes:
        node.summarise()
        node.finish()
    assert lines(store) == [1, 2, 3, 4]


def test_a_replaced_node_goes_on_with_its_own_share(nodes: list[Node], store: FileStore) -> None:
    nodes[1].all()
    nodes[0].begin()
    nodes[0].paint(1)
    old = nodes[0].attempt
    nodes[0].again()
    assert nodes[0].attempt.restored == 1, "its own pictures, not the other's"
    with pytest.raises(Unavailable, match="taken over"):
        claims.check_claim(store, "r", old.claim)
    claims.check_claim(store, "r", nodes[1].attempt.claim)
    nodes[0].paint(3)
    nodes[0].summarise()
    nodes[0].finish()
    assert json.loads(store.read("r/result.json"))["pictures"] == 4


def test_a_node_that_died_before_the_whole_makes_it_when_it_is_back(
    nodes: list[Node], store: FileStore
) -> None:
    for node in nodes:
        node.begin()
        node.paint(*node.lines)
        node.summarise()
        verdict.conclude(node.attempt)
        node.drain()  # both parts are there, and both have died
    seen: list[bool] = []

    def attempted(found: Attempt, world: World) -> None:
        seen.append(world.finished(found))

    shares.run(nodes[0].env, SPEC, StopRequest(), attempted)
    assert seen == [True]
    assert json.loads(store.read("r/result.json"))["pictures"] == 4


def test_only_the_last_node_ends_a_run_with_failed_pictures(
    nodes: list[Node], store: FileStore
) -> None:
    failure = {"line": 3, "image": 0, "reason": "not a number"}
    nodes[0].begin()
    nodes[0].paint(1)
    nodes[0].summarise((failure,))
    nodes[0].finish()  # 74 would end the other node, too
    nodes[1].begin()
    nodes[1].paint(2, 4)
    nodes[1].summarise()
    with pytest.raises(PicturesFailed, match="3 of 4 pictures; 1 failed: lines 3"):
        nodes[1].finish()


def test_a_row_that_is_missing_is_no_success(nodes: list[Node], store: FileStore) -> None:
    nodes[0].all()
    store.write("r/nodes/0/manifest.jsonl", b'{"line": 1, "image": 0}\n')
    with pytest.raises(BadData, match="3 rows of 4 pictures"):
        nodes[1].all()
    assert not results.has_result(nodes[1].attempt)


@pytest.mark.parametrize("name", [layout.RESULT, layout.PICTURES])
def test_a_record_that_is_gone_after_it_was_written_is_no_success(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for node in nodes:
        node.env = dataclasses.replace(node.env, store_deadline_seconds=0.0)
    nodes[0].all()
    listed = FileStore.list

    def without(self: FileStore, prefix: str) -> Iterator[Entry]:
        return (entry for entry in listed(self, prefix) if not entry.key.endswith(f"/{name}"))

    nodes[1].begin()
    monkeypatch.setattr(FileStore, "list", without)
    with pytest.raises((Unavailable, OSError), match=f"{name}: is not there after it was written"):
        nodes[1].do()


def test_the_part_of_a_removed_run_is_none(nodes: list[Node], store: FileStore) -> None:
    store.write("r/nodes/0/part.json", b'{"uid": "another", "summaries": []}')
    nodes[1].all()
    assert not results.has_result(nodes[1].attempt)
    nodes[0].all()
    assert results.has_result(nodes[0].attempt)


def test_a_node_that_is_told_to_stop_tells_its_own_progress(nodes: list[Node]) -> None:
    nodes[1].all()
    nodes[0].begin()
    nodes[0].paint(1)
    nodes[0].stop.since = 1.0
    with pytest.raises(Stopped, match="picture 1 is committed"):
        nodes[0].finish()


def test_pictures_and_runs_of_others_are_refused(nodes: list[Node], store: FileStore) -> None:
    store.write("r/images/00001-00.png", b"x")
    with pytest.raises(BadSpec, match="holds pictures of another run"):
        nodes[0].begin()
    store.delete("r/images/00001-00.png")
    nodes[0].begin()
    nodes[0].paint(1)
    nodes[1].begin()  # the pictures there are its own run's
    stranger = Node(store.root.parent, 1)
    stranger.env = dataclasses.replace(stranger.env, uid="another", nodes=3, index=2)
    with pytest.raises(BadSpec, match=r"belong to another submission \(u in"):
        stranger.begin()  # no node has claimed its part, and the run is another's
    stranger.env = dataclasses.replace(stranger.env, nodes=1, index=0)
    with pytest.raises(BadSpec, match="on one node if it paints"):
        stranger.begin()  # what the nodes have done goes by their number


def test_a_painting_on_one_node_goes_on_under_another_submission(
    tmp_path: Path, store: FileStore
) -> None:
    for uid, epoch in (("u", 1), ("another", 2)):
        alone = Node(store.root.parent, 0)
        alone.env = dataclasses.replace(alone.env, uid=uid, nodes=1)
        alone.begin()
        assert alone.attempt.claim.epoch == epoch
    several = Node(store.root.parent, 0)
    several.env = dataclasses.replace(several.env, uid="third")
    with pytest.raises(BadSpec, match="on one node if it paints"):
        several.begin()


def test_two_nodes_may_claim_the_run_at_the_same_moment(
    nodes: list[Node], store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, raced = FileStore.swap, []

    def swap(self: FileStore, key: str, old: bytes | None, new: bytes) -> None:
        if key == "r/claim.json" and not raced:
            raced.append(key)
            nodes[1].begin()  # between this one's look and its claim
        real(self, key, old, new)

    monkeypatch.setattr(FileStore, "swap", swap)
    nodes[0].begin()
    assert raced
    for node in nodes:
        claims.check_claim(store, "r", node.attempt.claim)


def test_what_a_node_had_finished_is_sent_as_its_own(nodes: list[Node], store: FileStore) -> None:
    nodes[0].begin()
    nodes[0].attempt.outbox.picture("00001-00.png", b"1", {"line": 1, "image": 0})
    nodes[0].begin()  # the same work directory, and a killed attempt's picture in it
    assert nodes[0].attempt.restored == 1
    assert len(known_rows(store, "r", 0)) == 1


def test_a_node_leaves_the_uploads_of_the_others_alone(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    aborted: list[str] = []

    def abort(self: FileStore, prefix: str, before: float) -> int:
        aborted.append(prefix)
        return 0

    monkeypatch.setattr(FileStore, "abort", abort)
    nodes[0].all()
    assert aborted == []
    nodes[1].all()
    assert aborted == ["r/"], "who makes the result, when nobody uploads any more"


def test_the_end_of_the_run_is_told_by_who_ends_it(nodes: list[Node], store: FileStore) -> None:
    nodes[0].all()
    verdict.tell_end(nodes[0].attempt, 0, "done")
    assert "r/end.json" not in {entry.key for entry in store.list("r/")}
    nodes[1].begin()
    verdict.tell_end(nodes[1].attempt, 137, "killed")
    told = json.loads(store.read("r/end.json"))
    assert (told["code"], told["attempt"]) == (137, 1)
    nodes[1].all()  # begins again
    assert "r/end.json" not in {entry.key for entry in store.list("r/")}
    verdict.tell_end(nodes[1].attempt, 0, "done")
    assert json.loads(store.read("r/end.json"))["code"] == 0


def test_a_node_that_fails_for_good_has_the_last_word(nodes: list[Node], store: FileStore) -> None:
    for node in nodes:
        node.begin()
    verdict.tell_end(nodes[1].attempt, 78, "no such model")
    verdict.tell_end(nodes[0].attempt, 75, "stopped, since the Job has failed")
    assert json.loads(store.read("r/end.json"))["code"] == 78
    nodes[0].again()
    assert json.loads(store.read("r/end.json"))["code"] == 78
