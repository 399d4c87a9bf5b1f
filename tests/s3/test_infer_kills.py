"""kill -9 at random moments of an inference run: no picture is lost, doubled or another one.

pytest -m chaos tests/s3/test_infer_kills.py --kills 50
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_kills import Run, kill

from jobs import layout
from jobs.access import Access
from jobs.specs import InferSpec, PromptRow, to_json
from jobs.stores import Store, open_store

pytestmark = [pytest.mark.chaos, pytest.mark.store, pytest.mark.timeout(3600)]

PICTURES = 200
PAINTED = Path(__file__).with_name("painted.py")
ROWS = tuple(
    PromptRow(line=2 * n + 1, prompt=f"a cat, {n}", images=2, steps=30 if n % 3 else 20)
    for n in range(PICTURES // 2)
)


class Painting(Run):
    """A run of PICTURES pictures by two workers."""

    def variables(self) -> dict[str, str]:
        spec = InferSpec(
            model="tiny", prompts=ROWS, precision="fp32", width=128, height=128, batch_size=4
        )
        return {**super().variables(), "JOB_SPEC": to_json(spec), "JOB_WORKERS": "2"}

    def start(self) -> subprocess.Popen[bytes]:
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work.parent / f"{self.name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, str(PAINTED)],
                env=self.variables(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def manifest(store: Store, run: str) -> list[dict[str, object]]:
    """Return the rows of a run but for its times, each picture read back and compared."""
    try:
        rows = [json.loads(row) for row in store.read(f"{run}/{layout.PICTURES}").splitlines()]
    except FileNotFoundError:
        return []
    for row in rows:
        del row["seconds"]
        found = hashlib.sha256(store.read(f"{run}/{row['file']}")).hexdigest()
        assert found == row["sha256"], f"{row['file']} is another picture"
    return rows


@pytest.mark.parametrize("kind", ["file", "versitygw"])
def test_no_picture_is_lost_or_doubled_by_kills(
    kind: str,
    tmp_path: Path,
    started: Callable[[str], object],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = -(-request.config.getoption("--kills") // 2)
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
    calm = Painting("calm", url, tmp_path / "work-calm", endpoint, secrets)
    assert calm.start().wait(timeout=120) == 0, (tmp_path / "calm.log").read_text()
    expected = manifest(store, "calm")
    assert len(expected) == PICTURES
    assert {row["worker"] for row in expected} == {0, 1}
    kills = {"all": 0, "one": 0, "nothing": 0}
    number = 0
    while sum(kills.values()) < wanted:
        number += 1
        run = Painting(f"run-{number}", url, tmp_path / f"work-{number}", endpoint, secrets)
        seen: list[dict[str, object]] = []
        while True:
            process = run.start()
            left = sum(kills.values()) < wanted
            try:
                code = process.wait(timeout=chance.uniform(0.5, 4) if left else 120)
            except subprocess.TimeoutExpired:
                assert left, "a run that nobody disturbs does not end"
                what = kill(process, chance)
                kills[what] += 1
                code = -9 if what == "all" else process.wait(timeout=120)
            found = manifest(store, run.name)
            assert all(row in found for row in seen), "a committed picture is gone"
            assert all(row in expected for row in found), "another picture, or one twice"
            assert len({row["file"] for row in found}) == len(found)
            seen = found
            if code == 0:
                break
        assert seen == expected
        files = {entry.key for entry in store.list(f"{run.name}/{layout.IMAGES}/")}
        assert files == {f"{run.name}/{row['file']}" for row in expected}
        result = json.loads(store.read(f"{run.name}/{layout.RESULT}"))
        assert (result["pictures"], result["asked"], result["failed"]) == (PICTURES, PICTURES, [])
    print(f"{kind}: {kills} in {number} runs")
