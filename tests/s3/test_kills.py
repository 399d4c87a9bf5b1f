"""kill -9 at random moments of save, upload, commit and retention: nothing committed is lost.

pytest -m chaos tests/chaos/test_kills.py --kills 200
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from supervised import files_of, state_of

from jobs import commits, layout, retention
from jobs.access import Access
from jobs.msrun import descendants
from jobs.specs import TrainSpec, to_json
from jobs.stores import Store, open_store

pytestmark = [pytest.mark.chaos, pytest.mark.store, pytest.mark.timeout(3600)]

STEPS, SAVE_EVERY, KEEP_LAST = 600, 12, 2
SUPERVISED = Path(__file__).with_name("supervised.py")


@dataclass
class Run:
    """One run: the same command again and again, until it ends by itself."""

    name: str
    url: str
    work: Path
    endpoint: str
    secrets: dict[str, str]

    def variables(self) -> dict[str, str]:
        spec = TrainSpec(
            model="tiny", data="tiny", steps=STEPS, save_every=SAVE_EVERY, keep_last=KEEP_LAST
        )
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("JOB_", "AWS_"))}
        ours = {
            "JOB_SPEC": to_json(spec), "JOB_RUN": self.name, "JOB_UID": "u", "JOB_DEVICE": "CPU",
            "JOB_STORE": self.url, "JOB_WORK": str(self.work), "JOB_STORE_DEADLINE_SECONDS": "60",
            "JOB_STALL_SECONDS": "60", **self.secrets,
        }  # fmt: skip
        return kept | ours | ({"JOB_STORE_ENDPOINT": self.endpoint} if self.endpoint else {})

    def start(self) -> subprocess.Popen[bytes]:
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work.parent / f"{self.name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, str(SUPERVISED)],
                env=self.variables(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def kill(process: subprocess.Popen[bytes], chance: random.Random) -> str:
    """Kill all of the run, or one of its processes, which is harder to survive."""
    victims = descendants(process.pid)
    if victims and chance.random() < 0.3:
        one = chance.choice(victims)
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            return "nothing"
        return "one"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return "all"


def inspect(store: Store, run: str, seen: set[int], reader: Path) -> None:
    """Look at the store as a reader does: what is committed is whole, right, and stays."""
    steps = commits.committed_steps(store, run)
    for step in steps:
        files = {row.path: row for row in commits.read_manifest(
            store, retention.checkpoint(run, step)).files}  # fmt: skip
        assert set(files) == set(files_of(step)), f"step {step}: another set is visible"
    for step in {steps[-1], random.choice(steps)} if steps else ():
        prefix = retention.checkpoint(run, step)
        for name, data in files_of(step).items():
            assert store.read(f"{prefix}/{name}") == data, f"step {step}: {name} was altered"
    lost = seen - set(steps)
    allowed = set(retention.doomed(sorted(seen | set(steps)), keep_last=KEEP_LAST))
    assert lost <= allowed, f"committed and gone: {sorted(lost - allowed)}"
    seen.clear()
    seen.update(steps)


@pytest.mark.parametrize("kind", ["file", "versitygw"])
def test_nothing_committed_is_lost_or_altered_by_kills(
    kind: str,
    tmp_path: Path,
    started: Callable[[str], object],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = request.config.getoption("--kills") // 2
    chance = random.Random(request.config.getoption("--chaos-seed"))
    url, endpoint, secrets = str(tmp_path / "store"), "", {}
    if kind == "versitygw":
        server = started(kind)
        url, endpoint = f"s3://{server.bucket()}/runs", server.endpoint
        secrets = {
            "AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip
        for name, value in secrets.items():
            monkeypatch.setenv(name, value)
    store = open_store(url, Access(endpoint=endpoint))
    kills = {"all": 0, "one": 0, "nothing": 0}
    number = 0
    while sum(kills.values()) < wanted:
        number += 1
        run = Run(f"run-{number}", url, tmp_path / f"work-{number}", endpoint, secrets)
        seen: set[int] = set()
        while True:
            process = run.start()
            try:
                code = process.wait(timeout=chance.uniform(0.2, 5) if sum(kills.values()) < wanted
                                    else 120)  # fmt: skip
            except subprocess.TimeoutExpired:
                assert sum(kills.values()) < wanted, "a run that nobody disturbs does not end"
                what = kill(process, chance)
                kills[what] += 1
                if what != "all":
                    code = process.wait(timeout=120)
                    if code == 0:
                        break
            else:
                if code == 0:
                    break
            inspect(store, run.name, seen, tmp_path)
        inspect(store, run.name, seen, tmp_path)
        assert max(seen) == STEPS
        prefix = retention.checkpoint(run.name, STEPS)
        assert store.read(f"{prefix}/state") == state_of(STEPS)
        commits.verify_set(store, prefix)
        assert len(seen) == KEEP_LAST
        rows = store.read(layout.key(run.name, layout.METRICS)).splitlines()
        assert [b'{"step": %d}' % step for step in range(1, STEPS + 1)] == rows
        assert not store.unfinished(run.name)
    print(f"{kind}: {kills} in {number} runs")
