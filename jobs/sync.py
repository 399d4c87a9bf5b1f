"""The uploader process: moves what appears in the outbox into the store, and verifies it.

It runs beside the workers, so that training waits for the local write alone. Must not decide
what a run is worth: it ends with 0 when everything is in the store, 69 when the store was away
past the deadline or the run belongs to a newer attempt.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from jobs import commits, layout
from jobs.environment import Environment
from jobs.errors import JobError, Unavailable
from jobs.outbox import Outbox
from jobs.stores import Store, open_store

log = logging.getLogger("jobs.sync")

POLL_SECONDS = 0.2
RECORD_SECONDS = 1.0
"""Seconds between copies of a growing record."""
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 30.0


@dataclass
class Uploader:
    """Moves one outbox to one run of a store; holds only what it has seen so far."""

    store: Store
    run: str
    outbox: Outbox
    claim: commits.Claim
    deadline_seconds: float
    rows: list[str] = field(default_factory=list)
    sent: dict[str, tuple[int, float]] = field(default_factory=dict)

    def retrying(self, what: str, action: Callable[[], object]) -> None:
        """Do `action`; on OSError again, with full jitter, until the deadline.

        Raises:
            Unavailable: the store failed for longer than the deadline.
        """
        started, wait = time.monotonic(), FIRST_RETRY_SECONDS
        while True:
            try:
                action()
            except OSError as error:
                away = time.monotonic() - started
                if away >= self.deadline_seconds:
                    raise Unavailable(
                        f"store {self.store.url}: {what}: {error}; gave up after {away:.0f} s"
                    ) from error
                log.warning("store=away what=%s error=%r since_s=%.0f", what, str(error), away)
                time.sleep(random.uniform(0, wait))
                wait = min(2 * wait, LAST_RETRY_SECONDS)
            else:
                return

    def cycle(self) -> None:
        """Send what has appeared since the last cycle."""
        for folder in sorted((self.outbox.root / layout.CHECKPOINTS).glob("step-*")):
            # First the rows up to it: who resumes from this step finds all of them.
            self._records(force=True)
            self._checkpoint(folder)
        self._pictures()
        self._records()

    def _checkpoint(self, folder: Path) -> None:
        started = time.monotonic()
        prefix = layout.key(self.run, layout.CHECKPOINTS, folder.name)
        self.retrying(
            f"commit of {folder.name}",
            lambda: commits.commit(
                self.store,
                prefix,
                folder,
                check=self._check_claim,
            ),
        )
        size = sum(row.bytes for row in commits.describe(folder).files)
        shutil.rmtree(folder)
        log.info(
            "committed=%s bytes=%d seconds=%.2f", folder.name, size, time.monotonic() - started
        )

    def _pictures(self) -> None:
        done = []
        for path in sorted((self.outbox.root / "rows").glob("[!.]*.json")):
            row = json.loads(path.read_bytes())
            picture = self.outbox.work / "outbox" / str(row["file"])
            key = layout.key(self.run, str(row["file"]))
            self.retrying(f"picture {row['file']}", lambda p=picture, k=key: self._put(k, p))  # type: ignore[misc]
            self.rows.append(json.dumps(row))
            done.append((path, picture))
        if done:
            self.retrying("picture manifest", self._write_rows)
            for path, picture in done:
                path.unlink()
                picture.unlink()

    def _check_claim(self) -> None:
        commits.check_claim(self.store, self.run, self.claim)

    def _put(self, key: str, path: Path) -> None:
        self.store.put(key, path)
        commits.verify(self.store, key, commits.sha256_of(path))

    def _write_rows(self) -> None:
        self._check_claim()
        rows = sorted(
            self.rows, key=lambda text: (json.loads(text)["line"], json.loads(text)["image"])
        )
        self.store.write(layout.key(self.run, layout.PICTURES), ("\n".join(rows) + "\n").encode())

    def _records(self, *, force: bool = False) -> None:
        root = self.outbox.root
        logs = self.outbox.work / layout.LOGS
        found = [(p.name, p) for p in root.glob("[!.]*.json*") if p.name != layout.RESULT]
        found += [(p.relative_to(self.outbox.work).as_posix(), p) for p in logs.rglob("*.log")]
        for name, path in found:
            size, when = path.stat().st_size, self.sent.get(name, (-1, 0.0))
            if size == when[0] or (not force and time.monotonic() - when[1] < RECORD_SECONDS):
                continue
            key = layout.key(self.run, name)
            self.retrying(name, self._check_claim)
            self.retrying(name, lambda p=path, k=key: self.store.put(k, p))  # type: ignore[misc]
            self.sent[name] = (size, time.monotonic())

    def finish(self) -> None:
        """Send what is left; the result comes last, so that it speaks of what is there."""
        self.cycle()
        self._records(force=True)
        result = self.outbox.root / layout.RESULT
        if result.exists():
            self.retrying(layout.RESULT, self._check_claim)
            key = layout.key(self.run, layout.RESULT)
            self.retrying(layout.RESULT, lambda: self._put(key, result))


def known_rows(store: Store, run: str) -> list[str]:
    """Return the rows of the pictures that earlier attempts have committed."""
    try:
        return store.read(layout.key(run, layout.PICTURES)).decode().splitlines()
    except FileNotFoundError:
        return []


def upload(env: Environment, claim: commits.Claim) -> None:
    """Run until the supervisor says that nothing new will appear.

    Raises:
        Unavailable: the store was away past the deadline.
        Unavailable: the run belongs to a newer attempt.
    """
    store = open_store(env.store)
    rows = known_rows(store, env.run)
    uploader = Uploader(store, env.run, Outbox(env.work), claim, env.store_deadline_seconds, rows)
    while not uploader.outbox.done.exists():
        uploader.cycle()
        time.sleep(POLL_SECONDS)
    uploader.finish()


def main() -> int:
    """Run as `python -m jobs.sync CLAIM`; the reason of a failure is left for the supervisor."""
    from jobs.environment import log_to_stdout

    log_to_stdout()
    env = Environment.read()
    try:
        upload(env, commits.Claim(**json.loads(sys.argv[1])))
    except JobError as error:
        log.error("%s", error)
        (env.work / "uploader-reason").write_text(f"{error.code} {error}", encoding="utf-8")
        return error.code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
