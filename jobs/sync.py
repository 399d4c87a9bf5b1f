"""The uploader process: moves what appears in the outbox into the store, and verifies it.

It runs beside the workers, so that training waits for the local write alone. Must not decide
what a run is worth: it ends with 0 when everything is in the store, 69 when the store was away
past the deadline or the run belongs to a newer attempt.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from jobs import claims, commits, layout, retention
from jobs.environment import Environment
from jobs.errors import Unavailable, planned
from jobs.outbox import Outbox, write_whole
from jobs.rows import gather, known_rows, tell_upload, write
from jobs.stores import PART, Store, Stored, open_store
from jobs.transfers import put_all

log = logging.getLogger("jobs.sync")

POLL_SECONDS = 0.2
RECORD_SECONDS, PAID_RECORD_SECONDS = 1.0, 10.0
"""Seconds between copies of a growing record: to a directory, and where requests cost money."""
PICTURES_AT_ONCE = 64
"""Pictures that are sent before the manifest is written again."""
NICENESS = 10
"""Training comes first: a step must not wait for an upload."""
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 30.0


@dataclass
class Uploader:
    """Moves one outbox to one run of a store; holds only what it has seen so far."""

    store: Store
    run: str
    outbox: Outbox
    claim: claims.Claim
    deadline_seconds: float
    rows: dict[str, str] = field(default_factory=dict)
    """File -> row in the manifest, of pictures that are in the store."""
    sent: dict[str, tuple[int, float]] = field(default_factory=dict)
    keep_last: int = 0
    keep_every: int = 0
    node: int | None = None
    """Which one of several; each has an uploader, which writes the rows of its own pictures."""
    gathered: float = 0.0
    """When the rows of all nodes were last gathered."""
    sending_s: float = 0.0
    """Time that pictures have taken, their manifest included."""
    stopped: Callable[[], bool] = lambda: False
    """Asked between tries, where somebody may stop waiting."""

    def retrying(self, what: str, action: Callable[[], object]) -> None:
        """Do `action`; on OSError again, with full jitter, until the deadline.

        A refusal is retried too: what was allowed an hour ago, as a key being replaced, may be
        again, and what lies here would be lost.

        Raises:
            Unavailable: the store failed for longer than the deadline, or a stop was asked for.
        """
        started, wait = time.monotonic(), FIRST_RETRY_SECONDS
        while True:
            try:
                action()
            except OSError as error:
                away = time.monotonic() - started
                if away >= self.deadline_seconds or self.stopped():
                    raise Unavailable(
                        f"store {self.store.url}: {what}: {error}; gave up after {away:.0f} s"
                    ) from error
                log.warning("store=away what=%s error=%r since_s=%.0f", what, str(error), away)
                with suppress(OSError):  # the disk may be full by now, which is then told instead
                    self.outbox.away.write_text(f"{time.time() - away:.0f} {error}")
                time.sleep(random.uniform(0, wait))
                wait = min(2 * wait, LAST_RETRY_SECONDS)
            else:
                self.outbox.away.unlink(missing_ok=True)
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
        sent: dict[str, Stored] = {}
        self.retrying(
            f"commit of {folder.name}",
            lambda: commits.commit(self.store, prefix, folder, self._check_claim, sent=sent),
        )
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        # At once: half a folder that a kill left would be taken for the whole set.
        shutil.rmtree(folder.rename(folder.with_name(f"{PART}{folder.name}")))
        seconds = time.monotonic() - started
        write_whole(
            self.outbox.rate, json.dumps({"bytes": size, "seconds": round(seconds, 3)}).encode()
        )
        log.info("committed=%s bytes=%d seconds=%.2f", folder.name, size, seconds)
        if self.keep_last:
            self.retrying("retention", self._retain)

    def _retain(self) -> None:
        """Remove the checkpoints that the spec does not keep."""
        steps = commits.committed_steps(self.store, self.run)
        pinned = retention.pinned(self.store, self.run)
        for step in retention.doomed(
            steps, keep_last=self.keep_last, keep_every=self.keep_every, pinned=pinned
        ):
            self._check_claim()
            retention.remove(self.store, retention.checkpoint(self.run, step))
            log.info("removed=%s", layout.step_name(step))

    def _pictures(self) -> None:
        paths = sorted((self.outbox.root / "rows").glob("[!.]*.json"))
        for at in range(0, len(paths), PICTURES_AT_ONCE):
            self._send_pictures(paths[at : at + PICTURES_AT_ONCE])

    def _send_pictures(self, paths: list[Path]) -> None:
        began = time.monotonic()
        rows = [json.loads(path.read_bytes()) for path in paths]
        pictures = [self.outbox.root / str(row["file"]) for row in rows]
        items = [
            (layout.key(self.run, str(row["file"])), picture)
            for row, picture in zip(rows, pictures, strict=True)
        ]

        def send() -> None:
            proofs = put_all(self.store, items)
            for row, stored in zip(rows, proofs, strict=True):
                if stored.sha256 != row["sha256"]:
                    raise OSError(f"{row['file']}: is not the picture that was painted")
            prefix = layout.key(self.run, layout.IMAGES, "")
            keys = [key for key, _ in items]
            commits.compare(self.store, prefix, dict(zip(keys, proofs, strict=True)))

        self.retrying(f"pictures from {rows[0]['file']}", send)
        # One row a picture: what is painted again after a kill is told with other seconds.
        for row in rows:
            self.rows.pop(row["file"], None)
            self.rows[row["file"]] = json.dumps(row)
        self.retrying("picture manifest", self._write_rows)
        for path, picture in zip(paths, pictures, strict=True):
            path.unlink()
            picture.unlink()
        self.sending_s += time.monotonic() - began

    def _check_claim(self) -> None:
        claims.check_claim(self.store, self.run, self.claim)

    def _write_rows(self) -> None:
        self._check_claim()
        write(self.store, self.run, self.rows.values(), self.node)
        if self.node is not None and time.monotonic() - self.gathered >= self._pause():
            gather(self.store, self.run)
            self.gathered = time.monotonic()

    def _records(self, *, force: bool = False) -> None:
        """Send the records and logs that have grown; at most every few seconds, or now."""
        root = self.outbox.root
        logs = self.outbox.work / layout.LOGS
        pause = self._pause()
        last = (layout.RESULT, layout.PART)
        found = [(p.name, p) for p in root.glob("[!.]*.json*") if p.name not in last]
        found += [(p.relative_to(self.outbox.work).as_posix(), p) for p in logs.rglob("*.log")]
        for name, path in found:
            size, when = path.stat().st_size, self.sent.get(name, (-1, 0.0))
            if size == when[0] or (not force and time.monotonic() - when[1] < pause):
                continue
            self._send_record(name, path, certain=force)
            self.sent[name] = (size, time.monotonic())

    def _pause(self) -> float:
        return RECORD_SECONDS if self.store.url.startswith("file:") else PAID_RECORD_SECONDS

    def _send_record(self, name: str, path: Path, *, certain: bool) -> None:
        """Send a copy of the record, since whoever writes it goes on; if wanted, look for it."""
        copy = self.outbox.work / "sending" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        key = layout.key(self.run, name)

        def send() -> None:
            proof = self.store.put(key, copy)
            if certain:
                commits.compare(self.store, key, {key: proof})

        self.retrying(name, self._check_claim)
        self.retrying(name, send)
        copy.unlink()

    def recall(self) -> None:
        """Read the rows of the pictures that are in the store already."""
        known = known_rows(self.store, self.run, self.node)
        self.rows = {json.loads(text)["file"]: text for text in known}

    def finish(self) -> None:
        """Send what is left; the result comes last, so that it speaks of what is there."""
        self.cycle()
        self._records(force=True)
        if self.node is not None and self.rows:
            self.retrying("picture manifest", lambda: gather(self.store, self.run))
        removes = self.claim.node is None and self.node in (None, 0)
        if self.keep_last and removes:  # an attempt may have been killed in the middle of it
            self.retrying("retention", self._retain)
        if removes:
            abort_uploads(self.store, self.run, self.outbox)
        for name, node in ((layout.RESULT, None), (layout.PART, self.node)):
            if (self.outbox.root / name).exists():
                self._send_last(self.outbox.root / name, layout.node_key(self.run, node, name))

    def _send_last(self, record: Path, key: str) -> None:
        tell_upload(record, self.sending_s)
        self.retrying(record.name, self._check_claim)

        def send() -> None:
            commits.compare(self.store, key, {key: self.store.put(key, record)})

        self.retrying(record.name, send)


def abort_uploads(store: Store, run: str, outbox: Outbox) -> None:
    """Forget the run's unfinished large uploads, which cost money unseen.

    For moments when the outbox has nothing to send: then nobody can go on with any of them.
    """
    shutil.rmtree(outbox.uploads, ignore_errors=True)
    try:
        count = store.abort(layout.key(run, ""), float("inf"))
    except OSError as error:  # not everybody may list them, and nothing depends on it
        log.warning("unfinished-uploads=kept error=%r", str(error))
    else:
        if count:
            log.info("unfinished-uploads=aborted count=%d", count)


def upload(env: Environment, claim: claims.Claim) -> None:
    """Run until the supervisor says that nothing new will appear.

    Raises:
        Unavailable: the store was away past the deadline, or the run is a newer attempt's.
    """
    outbox = Outbox(env.work)
    store = open_store(env.store, env.access, outbox.uploads)
    uploader = Uploader(store, env.run, outbox, claim, env.store_deadline_seconds)
    uploader.node = env.node
    uploader.retrying("picture manifest", uploader.recall)
    spec = json.loads(env.spec)
    uploader.keep_last = int(spec.get("keep_last", 0))
    uploader.keep_every = int(spec.get("keep_every", 0))
    while not uploader.outbox.done.exists():
        uploader.cycle()
        time.sleep(POLL_SECONDS)
    uploader.finish()


def main() -> int:
    """Run as `python -m jobs.sync CLAIM`; the reason of a failure is left for the supervisor."""
    from jobs.environment import log_to_stdout

    log_to_stdout()
    os.nice(NICENESS)
    env = Environment.read()
    try:
        upload(env, claims.Claim(**json.loads(sys.argv[1])))
    except Exception as error:
        known = planned(error, env.work)
        if known is None:
            raise
        log.error("%s", known)
        with suppress(OSError):
            # Whole or not at all: the disk may be full.
            write_whole(env.work / "uploader-reason", f"{known.code} {known}".encode())
        return known.code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
