"""The uploader as a real process over faulty roads to real servers.

Whatever happens on the way, it ends in results that a plain client finds whole, or in 69 with its
reason: never in 0 with an object that is missing or another one.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import servers
from faultproxy import fault_proxy
from faults import EVER, Fault, Kind, skewed, slow_down
from servers import Link, Server, Toxiproxy
from zygote import Zygote

from jobs import claims, commits, layout
from jobs.outbox import Outbox
from jobs.stores import FileStore

pytestmark = [pytest.mark.store, pytest.mark.timeout(300)]

RUN = "run"
SET = layout.key(RUN, layout.CHECKPOINTS, "step-00000020")
PART = 5 << 20
"""The least that S3 takes for a part that is not the last."""
BIG_BYTES = PART + 1001
AT_ONCE = 6
"""Uploaders that run at a time: they wait most of it."""

PROGRAM = f"""
import jobs.s3, jobs.sync
jobs.s3.S3Store.__init__.__kwdefaults__["part_bytes"] = {PART}
raise SystemExit(jobs.sync.main())
"""
"""`python -m jobs.sync` with smaller parts."""

Road = Callable[[Server, list[Fault]], AbstractContextManager[str]]
"""Gives the endpoint of a way to a server; leaves the faults for which there was no occasion."""

STEPS = {
    "file": {"method": "PUT", "key": "/state$"},
    "part": {"method": "PUT", "key": "/big$", "query": "partNumber=2"},
    "begin": {"method": "POST", "key": "/big$", "query": "^uploads"},
    "end": {"method": "POST", "key": "/big$", "query": "uploadId"},
    "manifest": {"method": "PUT", "key": f"/{layout.MANIFEST}$"},
    "list": {"method": "GET", "query": "prefix=.*step-"},
    "mark": {"method": "PUT", "key": f"/{layout.COMMITTED}$"},
    "picture": {"method": "PUT", "key": r"\.png$"},
    "result": {"method": "PUT", "key": f"/{layout.RESULT}$"},
}
"""What an uploader asks for on its way to a committed set, a picture and a result."""

BODIES = tuple(STEPS)[:2] + tuple(STEPS)[4:5] + tuple(STEPS)[6:]
"""Those that send a body whose bytes matter."""


def each(steps: tuple[str, ...], make: Callable[..., Fault], **given: object) -> list[Fault]:
    """Return one fault for each step."""
    return [make(**STEPS[step], **given) for step in steps]


def answer(**given: object) -> Fault:
    return Fault("answer", **given)  # type: ignore[arg-type]


def of(kind: Kind) -> Callable[..., Fault]:
    return lambda **given: Fault(kind, **given)


@dataclass(frozen=True)
class Scenario:
    """What is wrong with the road, and whether the uploader has to get through."""

    road: Road
    through: bool | None
    """None: either end will do."""


def faulty(*faults: Fault) -> Road:
    """Return a road that fails by schedule."""

    @contextmanager
    def open_road(server: Server, todo: list[Fault]) -> Iterator[str]:
        with fault_proxy(server.endpoint) as proxy:
            proxy.faults = [replace(fault, seen=0) for fault in faults]
            yield proxy.endpoint
            todo.extend(f for f in proxy.faults if f.done < min(f.times, 2))

    return open_road


def toxic(toxiproxy: Toxiproxy, spoil: Callable[[Link], None]) -> Road:
    """Return a road that toxiproxy spoils."""

    @contextmanager
    def open_road(server: Server, todo: list[Fault]) -> Iterator[str]:
        with toxiproxy.link(server.endpoint) as link:
            spoil(link)
            yield link.endpoint

    return open_road


ALL = tuple(STEPS)
SHORT: dict[str, Scenario] = {
    "503": Scenario(faulty(*each(ALL, answer, times=2)), through=True),
    "503 with Retry-After": Scenario(
        faulty(*each(("file", "mark"), answer, headers={"Retry-After": "1"})), through=True
    ),
    "SlowDown": Scenario(faulty(*each(ALL, slow_down)), through=True),
    "500": Scenario(faulty(*each(ALL, answer, status=500, code="InternalError")), through=True),
    "429": Scenario(faulty(*each(ALL, answer, status=429, code="TooManyRequests")), through=True),
    "clock skew": Scenario(faulty(*each(ALL, skewed)), through=True),
    "closed": Scenario(faulty(*each(ALL, of("close"))), through=True),
    "cut requests": Scenario(faulty(*each(BODIES, of("cut"))), through=True),
    "truncated answers": Scenario(faulty(*each(("list",), of("truncate"))), through=True),
    "hung": Scenario(faulty(*each(("file", "part", "mark"), of("hang"), seconds=1)), through=True),
    "corrupted requests": Scenario(faulty(*each(BODIES, of("corrupt"))), through=True),
    "lost answers": Scenario(faulty(*each(ALL, of("lose"))), through=True),
    "delayed": Scenario(faulty(*each(ALL, of("delay"), seconds=0.3)), through=True),
    "error in a 200": Scenario(
        faulty(*each(("end",), answer, status=200, code="InternalError")), through=True
    ),
    "400 of a gateway": Scenario(
        faulty(*each(ALL, answer, status=400, code="RequestTimeout")), through=True
    ),
    "swallowed": Scenario(faulty(*each(BODIES, of("swallow"))), through=True),
    "beheaded answers": Scenario(faulty(*each(ALL, of("behead"))), through=True),
    "a beheaded claim": Scenario(
        faulty(Fault("behead", "GET", layout.CLAIM, times=3)), through=True
    ),
    "wrong answers": Scenario(faulty(Fault("wrong", "GET", first=3, times=2)), through=None),
}
"""Faults that pass."""

LASTING: dict[str, Scenario] = {
    f"{name} for ever, {step}": Scenario(faulty(*each((step,), make, times=EVER, **more)), False)
    for name, step, make, more in (
        ("503", "part", answer, {}),
        ("closed", "end", of("close"), {}),
        ("cut", "part", of("cut"), {}),
        ("hung", "file", of("hang"), {"seconds": 0.2}),
        ("corrupted", "part", of("corrupt"), {}),
        ("corrupted", "file", of("corrupt"), {}),
        ("lost", "manifest", of("lose"), {}),
        ("403", "mark", answer, {"status": 403, "code": "AccessDenied"}),
        ("swallowed", "file", of("swallow"), {}),
        ("swallowed", "part", of("swallow"), {}),
        ("swallowed", "manifest", of("swallow"), {}),
        ("swallowed", "mark", of("swallow"), {}),
        ("swallowed", "picture", of("swallow"), {}),
        ("swallowed", "result", of("swallow"), {}),
    )
}
LASTING["truncated for ever"] = Scenario(
    faulty(Fault("truncate", "GET", query="prefix=.*step-", times=EVER)), through=False
)
"""Faults that outlast the deadline."""

SPOILT: dict[str, tuple[Callable[[Link], None], bool]] = {
    "latency": (lambda link: link.add("latency", latency=150, jitter=100), True),
    "bandwidth": (lambda link: link.add("bandwidth", "upstream", rate=8000), True),
    "slicer": (
        lambda link: link.add("slicer", "upstream", average_size=60000, size_variation=20000,
                              delay=100),
        True,
    ),
    "reset_peer": (lambda link: link.add("reset_peer", "upstream", timeout=20), False),
    "timeout": (lambda link: link.add("timeout", "upstream", timeout=300), False),
    "limit_data upstream": (lambda link: link.add("limit_data", "upstream", bytes=1 << 20), False),
    "limit_data downstream": (lambda link: link.add("limit_data", bytes=900), None),
    "nobody listens": (lambda link: link.enable(on=False), False),
}  # fmt: skip
"""Faults of the link, as toxiproxy makes them."""


@dataclass
class Ended:
    """How an uploader ended, and what a plain client finds then."""

    code: int
    reason: str
    output: str
    wrong: list[str] = field(default_factory=list)
    """Objects that should be there and are not, or are others."""
    todo: list[Fault] = field(default_factory=list)
    """Faults for which there was no occasion."""
    committed: bool = False
    seconds: float = 0.0


def prepare(server: Server, bucket: str, work: Path) -> dict[str, bytes]:
    """Fill an outbox as a run does that has ended; return the objects that have to come of it."""
    outbox = Outbox(work)
    draft = outbox.draft(20)
    expected = {"state": os.urandom(3000), "big": os.urandom(BIG_BYTES), "sub dir/more +%": b""}
    for name, data in expected.items():
        (draft / name).parent.mkdir(exist_ok=True)
        (draft / name).write_bytes(data)
    manifest = commits.describe(draft).to_json()
    outbox.publish(draft)
    objects = {f"{SET}/{name}": data for name, data in expected.items()}
    objects[f"{SET}/{layout.MANIFEST}"] = manifest
    objects[f"{SET}/{layout.COMMITTED}"] = hashlib.sha256(manifest).hexdigest().encode() + b"\n"
    name = layout.picture_name(7, 0)
    picture = os.urandom(2000)
    outbox.picture(name, picture, {"line": 7, "image": 0})
    row = (outbox.root / "rows" / f"{name}.json").read_bytes()
    objects[layout.key(RUN, layout.IMAGES, name)] = picture
    objects[layout.key(RUN, layout.PICTURES)] = row + b"\n"
    (outbox.root / layout.RESULT).write_bytes(b'{"done": 1}')
    objects[layout.key(RUN, layout.RESULT)] = b'{"done": 1}'
    outbox.done.touch()
    return objects


def upload(forks: Zygote, server: Server, scenario: Scenario, work: Path) -> Ended:
    """Let an uploader send a run over the scenario's road, and look at what arrived."""
    bucket = server.bucket()
    objects = prepare(server, bucket, work)
    aside = FileStore(work / "aside")
    claim = claims.take_claim(aside, RUN, cluster="", namespace="", uid="u").to_json()
    key = layout.key(RUN, layout.CLAIM)
    server.client().put_object(Bucket=bucket, Key=key, Body=aside.read(key))
    started = time.monotonic()
    todo: list[Fault] = []
    with scenario.road(server, todo) as endpoint:
        variables = {
            "JOB_SPEC": "{}", "JOB_RUN": RUN, "JOB_STORE": f"s3://{bucket}",
            "JOB_STORE_ENDPOINT": endpoint, "JOB_UID": "u", "JOB_WORK": str(work),
            "JOB_STORE_DEADLINE_SECONDS": "30" if scenario.through else "0.5",
        }  # fmt: skip
        child = forks.fork(PROGRAM, work / "output", claim.decode(), **variables)
        code = child.wait()
    told = work / "uploader-reason"
    ended = Ended(
        code,
        told.read_text() if told.exists() else "",
        child.told(),
        todo=todo,
        seconds=time.monotonic() - started,
    )
    client = server.client(response_checksum_validation="when_required")
    for key, data in objects.items():
        try:
            found = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        except client.exceptions.NoSuchKey:
            ended.wrong.append(f"{key} is missing")
            continue
        ended.committed = ended.committed or key.endswith(layout.COMMITTED)
        if found != data:
            ended.wrong.append(f"{key} is another one")
    return ended


@pytest.fixture(scope="module")
def uploads(
    started: Callable[[str], Server],
    toxiproxy: Toxiproxy,
    forks: Zygote,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Callable[[str, str], Ended]]:
    """Return a function that tells how an uploader ended; those asked for run side by side."""
    links = {name: Scenario(toxic(toxiproxy, spoil), ok) for name, (spoil, ok) in SPOILT.items()}
    scenarios = SHORT | LASTING | links
    wanted = []
    for item in request.session.items:
        if (call := getattr(item, "callspec", None)) and "scenario" in call.params:
            wanted.append((call.params["name"], call.params["scenario"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", servers.ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET_KEY)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            running: dict[tuple[str, str], Future[Ended]] = {
                (server, name): pool.submit(
                    upload, forks, started(server), scenarios[name], tmp_path_factory.mktemp("w")
                )
                for server, name in wanted
            }
            yield lambda server, name: running[server, name].result()


@pytest.mark.parametrize("scenario", [*SHORT, *LASTING, *SPOILT])
@pytest.mark.parametrize("name", servers.NAMES)
def test_an_upload_ends_in_the_truth(
    uploads: Callable[[str, str], Ended], name: str, scenario: str
) -> None:
    ended = uploads(name, scenario)
    print(f"exit {ended.code} after {ended.seconds:.1f} s: {ended.reason}")
    print(ended.output[-4000:])
    assert servers.SECRET_KEY not in ended.output + ended.reason
    assert "Traceback" not in ended.output
    if ended.code == 0:
        assert ended.wrong == []
        assert ended.todo == []
    else:
        assert ended.code == 69
        assert re.fullmatch(r"69 [^\n]+", ended.reason)
        of_set = [text for text in ended.wrong if text.startswith(SET)]
        assert not ended.committed or of_set == []
    all_of_them = {name: row.through for name, row in (SHORT | LASTING).items()}
    through = (all_of_them | {name: ok for name, (_, ok) in SPOILT.items()})[scenario]
    assert through is None or through == (ended.code == 0)
