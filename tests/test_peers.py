"""How supervisors of several nodes find, keep and lose each other, over real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from jobs import links, peers
from jobs.claims import Claim
from jobs.environment import Environment, Worker
from jobs.errors import BadSpec, Unavailable
from jobs.gang import Gang
from jobs.msrun import Master, free_port
from jobs.peers import Head, Lost, Member
from jobs.stopping import StopRequest

NOBODY: Callable[[], bool] = lambda: False  # noqa: E731


def environment(port: int, index: int, **values: object) -> Environment:
    given: dict[str, object] = {
        "spec": "{}", "run": "r", "store": "file:///s", "uid": "u-1", "work": Path("w"),
        "nodes": 3, "index": index, "master": "localhost", "master_port": port,
        "rendezvous_seconds": 20,
    }  # fmt: skip
    return Environment(**(given | values))  # type: ignore[arg-type]


def claim(epoch: int) -> Claim:
    return Claim("c", "n", "u-1", epoch, "t")


class World:
    """A head and members on one machine."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack, self.port = stack, free_port()
        self.head = Head(environment(self.port, 0))
        stack.callback(self.head.close)

    def member(self, index: int, **values: object) -> Member:
        found = Member(environment(self.port, index, **values))
        self.stack.callback(found.close)
        return found

    def begin(self, epoch: int, *members: Member) -> None:
        """Bring everybody into a generation, as supervisors do in processes of their own."""
        threads = [threading.Thread(target=m.take, args=(StopRequest(), NOBODY)) for m in members]
        for thread in threads:
            thread.start()
        self.head.begin(claim(epoch), 4, StopRequest())
        for thread in threads:
            thread.join(10)
        assert all(m.epoch == epoch for m in members)


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


def lost(check: Callable[[], None], seconds: float = 5) -> str:
    """Return why it is lost; the news may take a moment."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            check()
        except Lost as error:
            return str(error)
        time.sleep(0.01)
    return ""


def test_a_generation_is_begun_by_all_at_one_master(world: World) -> None:
    one, two = world.member(1), world.member(2)
    world.begin(7, one, two)
    masters: list[Master] = []
    going = [
        threading.Thread(target=lambda m=m: masters.append(m.go(StopRequest()))) for m in (one, two)
    ]
    for thread in going:
        thread.start()
    mine = world.head.go(StopRequest())
    for thread in going:
        thread.join(10)
    assert masters == [mine, mine]
    assert mine.host == "127.0.0.1"
    assert mine.port != world.port


def test_nobody_starts_before_all_have_restored(world: World) -> None:
    one, two = world.member(1), world.member(2)
    world.begin(1, one, two)
    one.tell(ready=1)
    two.tell(ready=0)  # of a generation before
    time.sleep(0.3)
    assert not world.head.all_said("ready")
    two.tell(ready=1)
    until = time.monotonic() + 5
    while not world.head.all_said("ready") and time.monotonic() < until:
        time.sleep(0.01)
    assert world.head.all_said("ready")


def test_a_closed_connection_is_a_lost_node_at_once(world: World) -> None:
    one, two = world.member(1), world.member(2)
    world.begin(1, one, two)
    world.head.check()
    began = time.monotonic()
    two.close()
    assert lost(world.head.check) == "node 2: its connection was closed"
    assert time.monotonic() - began < 3  # no silence has to pass
    one.check()  # hears of it by node 0's word
    world.head.tell(again=1)
    assert lost(one.check) == "node 0: begins anew"


def test_a_lost_node_0_is_noticed_and_found_again_at_the_same_name(world: World) -> None:
    one, two = world.member(1), world.member(2)
    world.begin(1, one, two)
    world.head.close()
    assert lost(one.check) == "node 0: its connection was closed"
    world.head = Head(environment(world.port, 0))
    world.stack.callback(world.head.close)
    world.begin(2, one, two)
    one.check()
    world.head.check()


def test_a_node_that_was_started_anew_ends_the_generation(world: World) -> None:
    one, two = world.member(1), world.member(2)
    world.begin(1, one, two)
    again = world.member(2)
    threading.Thread(target=again.take, args=(StopRequest(), NOBODY), daemon=True).start()
    assert lost(world.head.check).startswith("node 2: ")
    world.begin(2, one)
    assert again.epoch == 2


def test_a_silent_machine_is_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one = world.member(1)
    # A machine that is switched off closes nothing: a socket that nobody serves.
    mute = socket.create_connection(("127.0.0.1", world.port))
    mute.sendall(b'{"hello": {"index": 2, "uid": "u-1"}}\n')
    world.begin(1, one)
    world.head.check()
    monkeypatch.setattr(links, "LOST_SECONDS", 2.0)
    assert lost(world.head.check, 10) == "node 2: silent for 2 s"
    mute.close()


def test_strangers_are_nobody(world: World) -> None:
    sent = (
        b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"hello": {"index": 9, "uid": "u-1"}}\n',
        b'{"hello": {"index": 1, "uid": "another"}}\n', b'{"hello": 1}\n', b"\xff\n",
        b"[" * 20_000 + b"\n",
        b'{"hello": {"index": [], "uid": "u-1"}}\n', b"x" * 200_000,
    )  # fmt: skip
    sockets = []
    for words in sent:
        connection = socket.create_connection(("127.0.0.1", world.port))
        connection.sendall(words)
        sockets.append(connection)
    one, two = world.member(1), world.member(2)
    world.begin(1, one, two)
    world.head.check()
    for connection in sockets:  # each was shown the door
        connection.settimeout(5)
        with suppress(ConnectionError):
            while connection.recv(4096):
                pass
        connection.close()


def test_who_waits_in_vain_says_for_whom(world: World) -> None:
    world.head.env = environment(world.port, 0, rendezvous_seconds=0.5)
    with pytest.raises(Unavailable, match=r"rendezvous: node 1, 2 of 3 did not come within 0 s"):
        world.head.begin(claim(1), 0, StopRequest())
    two = Member(environment(free_port(), 2, rendezvous_seconds=1))
    with pytest.raises(
        Unavailable, match=r"node 0 \(localhost\) did not begin within 1 s: .*refus"
    ):
        two.take(StopRequest(), NOBODY)
    nowhere = Member(environment(1, 2, rendezvous_seconds=1, master="run-0.peers.invalid"))
    with pytest.raises(Unavailable, match=r"did not begin within 1 s: .*[Nn]ame"):
        nowhere.take(StopRequest(), NOBODY)


def test_who_is_there_is_waited_for(world: World) -> None:
    """Node 0 may restore and stage for longer than a rendezvous may last."""
    patient = world.member(1, rendezvous_seconds=1)
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.append(patient.take(StopRequest(), NOBODY)))
    thread.start()
    time.sleep(2.5)
    assert thread.is_alive()
    other = world.member(2)
    world.begin(1, other)
    thread.join(5)
    assert taken != []


def test_a_stop_ends_every_wait(world: World) -> None:
    stop = StopRequest(since=time.monotonic())
    with pytest.raises(Unavailable, match="stopped on request while waiting for node 1, 2"):
        world.head.begin(claim(1), 0, stop)
    one, two = world.member(1), world.member(2)
    with pytest.raises(Unavailable, match="stopped on request before"):
        one.take(stop, NOBODY)
    world.begin(1, one, two)
    with pytest.raises(Unavailable, match="stopped on request before"):
        one.go(stop)
    with pytest.raises(Unavailable, match="stopped on request before"):
        world.head.go(stop)


def test_who_leaves_is_not_taken_along(world: World) -> None:
    one, two = world.member(1), world.member(2)
    world.begin(1, one, two)
    two.tell(leaving=1)
    world.head.env = environment(world.port, 0, rendezvous_seconds=1)
    until = time.monotonic() + 5
    while world.head._missing() != [2] and time.monotonic() < until:
        time.sleep(0.01)
    world.head.check()  # it has to end in order first
    with pytest.raises(Unavailable, match="node 2 of 3 did not come"):
        world.head.begin(claim(2), 0, StopRequest())


def test_who_comes_after_the_end_finds_the_result(world: World) -> None:
    one, two = world.member(1), world.member(2)
    world.begin(1, one, two)
    world.head.tell(end=True)
    assert one.take(StopRequest(), NOBODY) is None
    late = Member(environment(free_port(), 1))
    assert late.take(StopRequest(), lambda: True) is None


def test_a_failure_is_blamed_on_a_node_that_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "BLAME_SECONDS", 2.0)
    one, two = world.member(1), world.member(2)
    world.begin(1, one, two)
    world.head.listen()  # all are there
    threading.Timer(0.5, two.close).start()
    with pytest.raises(Lost, match="node 2"):
        world.head.listen()


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadSpec, match=f"JOB_MASTER_PORT: {port}: .*in use"):
            Head(environment(port, 0))


@pytest.mark.parametrize("nodes", [1, 2, 3])
@pytest.mark.parametrize("local", [1, 2, 4])
def test_each_node_does_all_that_its_workers_share_and_begins_elsewhere(
    tmp_path: Path, nodes: int, local: int
) -> None:
    count = 24
    firsts = set()
    for node in range(nodes):
        done: list[int] = []
        for rank in range(node * local, (node + 1) * local):
            mine = Gang(tmp_path, Worker(rank, nodes * local), nodes).share(count)
            firsts.add(mine[0])
            done += mine
        assert sorted(done) == list(range(count))
    assert len(firsts) == nodes * local
