"""Going on with a download: drafts of any shape, broken lines, answers that lie, two at once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faultproxy import FaultProxy, fault_proxy
from faults import EVER, Fault
from servers import REGION, Server

from jobs import s3client, s3faults
from jobs.access import Access
from jobs.s3 import BUFFERS, S3Store
from jobs.stores import Refused

pytestmark = pytest.mark.store

PART = 1 << 20
DATA = os.urandom(8 * PART + 17)
DIGEST = hashlib.sha256(DATA).hexdigest()

Opened = Callable[..., S3Store]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3faults, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(s3client, "READ_SECONDS", 5)


@pytest.fixture
def opened(versitygw: Server) -> Opened:
    name = versitygw.bucket()

    def make(endpoint: str = "") -> S3Store:
        access = Access(endpoint=endpoint or versitygw.endpoint, region=REGION)
        return S3Store(name, "", access, part_bytes=PART)

    store = make()
    store.client.put_object(Bucket=name, Key="big", Body=DATA)
    return make


@pytest.fixture
def proxy(versitygw: Server) -> Iterator[FaultProxy]:
    with fault_proxy(versitygw.endpoint) as found:
        yield found


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "big"


def draft(target: Path, data: bytes, notes: object) -> None:
    target.parent.mkdir(exist_ok=True)
    target.with_name(f".part-{target.name}").write_bytes(data)
    text = notes if isinstance(notes, str) else json.dumps(notes)
    target.with_name(f".part-{target.name}.json").write_text(text)


def tag(store: S3Store) -> str:
    return next(iter(store.list("big"))).tag


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (DATA[: 3 * PART], len(DATA)),
        (DATA[: 3 * PART + 5], len(DATA)),
        (DATA, len(DATA)),  # whole: killed just before its rename
        (DATA + b"more", len(DATA)),
        (DATA[:PART] + b"x" * PART, PART),
        (b"", len(DATA)),
        (b"x" * 100, 0),
    ],
)
def test_a_draft_of_any_length_becomes_the_object(
    opened: Opened, target: Path, data: bytes, size: int
) -> None:
    store = opened()
    draft(target, data, {"tag": tag(store), "size": size})
    moved: list[int] = []
    assert store.get("big", target, moved.append) == DIGEST
    assert target.read_bytes() == DATA
    assert [path.name for path in target.parent.iterdir()] == ["big"]


def test_a_whole_draft_of_an_object_that_was_replaced_is_not_taken(
    opened: Opened, target: Path
) -> None:
    store = opened()
    draft(target, DATA, {"tag": tag(store), "size": len(DATA)})
    store.client.put_object(Bucket=store.bucket, Key="big", Body=b"new")
    assert store.get("big", target) == hashlib.sha256(b"new").hexdigest()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("notes", ["[" * 200_000, "{", "[]", '{"tag": "x", "size": true}'])
def test_notes_that_say_nothing_are_as_none(opened: Opened, target: Path, notes: str) -> None:
    draft(target, DATA[:PART], notes)
    assert opened().get("big", target) == DIGEST


def test_a_line_that_breaks_again_and_again_gets_on(
    opened: Opened, proxy: FaultProxy, target: Path
) -> None:
    # Half of each answer gets through, of ever smaller ones: more breaks than there are tries.
    proxy.faults = [Fault("truncate", "GET", key="/big", times=2 * s3faults.ATTEMPTS + 2)]
    assert opened(proxy.endpoint).get("big", target) == DIGEST
    assert len(proxy.found("GET", "/big")) > 2 * s3faults.ATTEMPTS


def test_the_head_of_a_range_that_broke_off_is_kept(
    opened: Opened, proxy: FaultProxy, target: Path
) -> None:
    proxy.faults = [
        Fault("close", "GET", key="/big", first=2, times=EVER),
        Fault("truncate", "GET", key="/big"),
    ]
    with pytest.raises(OSError, match=r"closed|early"):
        opened(proxy.endpoint).get("big", target)
    assert target.with_name(".part-big").stat().st_size == PART // 2
    proxy.faults = []
    assert opened(proxy.endpoint).get("big", target) == DIGEST


def test_what_came_before_a_token_expired_is_kept(
    opened: Opened, proxy: FaultProxy, target: Path
) -> None:
    proxy.faults = [
        Fault("answer", "GET", "/big", first=3, times=EVER, status=400, code="ExpiredToken")
    ]
    with pytest.raises(Refused, match="ExpiredToken"):
        opened(proxy.endpoint).get("big", target)
    assert target.with_name(".part-big").stat().st_size >= PART
    proxy.faults = []
    assert opened(proxy.endpoint).get("big", target) == DIGEST


def test_an_object_that_is_gone_leaves_nothing(opened: Opened, target: Path) -> None:
    store = opened()
    draft(target, DATA[:PART], {"tag": tag(store), "size": len(DATA)})
    store.delete("big")
    with pytest.raises(FileNotFoundError):
        store.get("big", target)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("told", ["bytes 0-1048575/8388625", "bytes 1048576-2097151/*", None])
def test_an_answer_of_another_range_is_not_believed(
    opened: Opened, proxy: FaultProxy, target: Path, told: str | None
) -> None:
    headers = {"ETag": f'"{tag(opened())}"', **({"Content-Range": told} if told else {})}
    lie = Fault(
        "answer", "GET", "/big", first=2, status=206, body=b"x" * PART, headers=headers, times=3
    )
    proxy.faults = [lie]
    assert opened(proxy.endpoint).get("big", target) == DIGEST
    assert lie.done == 3


def test_a_file_that_fails_gives_its_memory_back(
    opened: Opened, proxy: FaultProxy, tmp_path: Path
) -> None:
    store = opened(proxy.endpoint)
    for number in range(BUFFERS + 2):
        proxy.faults = [Fault("close", "GET", key="/big", first=2, times=EVER)]
        with pytest.raises(OSError, match="closed"):
            store.get("big", tmp_path / str(number))
    proxy.faults = []
    found: list[str] = []
    last = threading.Thread(
        target=lambda: found.append(store.get("big", tmp_path / "last")), daemon=True
    )
    last.start()
    last.join(30)
    assert found == [DIGEST]


def test_two_do_not_fetch_to_one_place(opened: Opened, target: Path) -> None:
    draft(target, b"", "{}")
    with target.with_name(".part-big").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Refused, match="another process is fetching it"):
            opened().get("big", target)
        assert target.with_name(".part-big").exists(), "it is the other's"
    assert opened().get("big", target) == DIGEST
