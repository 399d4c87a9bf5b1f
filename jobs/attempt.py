"""Owns one attempt at a run: its claim, what it restores from the store, how far the run is.

Must not start processes or import MindSpore.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from jobs import cgroups, claims, commits, layout, specs, versions
from jobs.environment import Environment
from jobs.errors import BadData, BadSpec, Unavailable
from jobs.history import Row, history, now
from jobs.outbox import Outbox, write_whole
from jobs.rows import known_rows
from jobs.stopping import StopRequest
from jobs.stores import Refused, Store, open_store
from jobs.sync import Uploader, abort_uploads

log = logging.getLogger("jobs.attempt")
T = TypeVar("T")

STALE = (
    "outbox", "drafts", "restored", "encoded", "alive", "ended", "reasons", "summaries", "stop",
    "done", "uploader-reason", "sending", "upload-rate.json", "store-away",
)  # fmt: skip
"""What an attempt writes into its work directory and the next one must not find."""
OWNER = "owner.json"
"""The claim of the attempt that last used the work directory."""


@dataclass
class Attempt:
    """One attempt at a run: what it found in the store and what it has seen so far."""

    env: Environment
    spec: specs.Spec
    store: Store
    claim: claims.Claim
    stop: StopRequest
    restored: int = 0
    """Step resumed from, or number of pictures found; 0 for a fresh start."""
    started: float = field(default_factory=time.monotonic)
    history: list[Row] = field(default_factory=list)
    """What is known of the attempts so far, this one the last; none of one of several nodes."""
    memory: cgroups.Memory = field(default_factory=cgroups.read)
    """At the start: what the kernel has killed before is not this attempt's."""

    @property
    def outbox(self) -> Outbox:
        """The hand-over folder."""
        return Outbox(self.env.work)

    @property
    def logs(self) -> Path:
        """Where this attempt's logs are written."""
        node = "" if self.claim.node is None else f"-node-{self.claim.node}"
        return self.env.work / layout.LOGS / f"attempt-{self.claim.epoch}{node}"

    def progress(self) -> int:
        """Return the newest committed step, or the number of committed pictures of this node."""
        if self.spec.kind == "train":
            return max(commits.committed_steps(self.store, self.env.run), default=0)
        return len(known_rows(self.store, self.env.run, self.claim.node))


def patiently(env: Environment, stop: StopRequest, what: str, action: Callable[[], T]) -> T:
    """Return what `action` returns; while the store is away try again, up to the deadline.

    Raises:
        Unavailable: the store was away for longer or has refused for good, or a stop was asked
            for meanwhile.
    """
    started = time.monotonic()
    while True:
        try:
            return action()
        except FileNotFoundError:
            raise  # the store has answered
        except Refused as error:
            raise Unavailable(f"store: {error}") from error
        except OSError as error:
            if time.monotonic() - started >= env.store_deadline_seconds or stop.since is not None:
                raise Unavailable(f"store {env.store}: {what}: {error}") from error
            log.warning("store=away what=%s error=%r", what, str(error))
            time.sleep(2)


def prepare(env: Environment, spec: specs.Spec, stop: StopRequest) -> Attempt:
    """Claim the run, clear the work directory and restore the newest committed state.

    Of a painting over several nodes each claims its own part, and works as if it were alone.

    Raises:
        BadSpec: the run belongs to another submission of another spec, or pictures lie where its
            own would.
        BadData: it has committed states, and all are damaged.
        Unavailable: the store was away past the deadline.
    """
    began = now()
    store = open_store(env.store, env.access, Outbox(env.work).uploads)
    node = env.node if spec.kind == "infer" else None
    if spec.kind == "infer":
        patiently(env, stop, "list of pictures", lambda: _refuse_strangers(env, store))
    forked = spec.kind == "train" and spec.fork
    goes_on = forked or patiently(env, stop, layout.SPEC, lambda: _is_of(store, env.run, spec))
    claim = patiently(
        env,
        stop,
        "claim",
        lambda: claims.take_claim(
            store,
            env.run,
            cluster=env.cluster,
            namespace=env.namespace,
            uid=env.uid,
            take_over=goes_on,
            node=node,
        ),
    )
    if _is_ours(env.work / OWNER, claim):
        _salvage(env, spec, store, claim, stop)
    alone = env if node is None else replace(env, nodes=1, index=0)
    attempt = begin(Attempt(alone, spec, store, claim, stop))
    patiently(env, stop, "restore", lambda: _restore(attempt))
    if node is None:
        abort_uploads(store, env.run, attempt.outbox)
        number = claim.epoch
        attempt.history = patiently(
            env, stop, layout.SPEC, lambda: history(store, env.run, number, began)
        )
    text = specs.to_json(spec)
    record = {
        "spec": json.loads(text),
        "sha256": _sha256(text),
        "attempts": claim.epoch,
        "versions": versions.all_there(),
        "history": attempt.history,
    }
    body = json.dumps(record, indent=1).encode()
    # Not over the record of a submission that has taken the run over meanwhile.
    patiently(env, stop, "claim", lambda: claims.check_claim(store, env.run, claim))
    patiently(env, stop, layout.SPEC, lambda: store.write(layout.key(env.run, layout.SPEC), body))
    return attempt


def _is_of(store: Store, run: str, spec: specs.Spec) -> bool:
    """Say whether the run's records are of this very spec, or there are none of any.

    So a run that was cancelled, whose Job is gone, goes on when it is submitted again. Not one that
    several nodes have painted: what each has done goes by their number.
    """
    if next(iter(store.list(layout.key(run, layout.NODES, ""))), None) is not None:
        return False
    try:
        found = json.loads(store.read(layout.key(run, layout.SPEC)))
        return specs.parse_json(json.dumps(found["spec"])) == spec
    except FileNotFoundError:
        return not commits.committed_steps(store, run) and not known_rows(store, run)
    except (ValueError, KeyError, TypeError, BadSpec):
        return False


def begin(attempt: Attempt) -> Attempt:
    """Clear the work directory for the attempt, and return it."""
    work = attempt.env.work
    # An earlier attempt in the same directory may have left half of something. By name: the store
    # may lie in the directory too.
    for name in STALE:
        path = work / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    write_whole(work / OWNER, attempt.claim.to_json())
    shutil.rmtree(attempt.logs, ignore_errors=True)
    return attempt


def _is_ours(path: Path, claim: claims.Claim) -> bool:
    """Say whether the directory was written by the attempt just before this one.

    An older one's leftovers must not overwrite what the attempts between have put into the store.
    """
    try:
        before = claims.Claim(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return False
    return (before.uid, before.epoch + 1) == (claim.uid, claim.epoch)


def _salvage(
    env: Environment, spec: specs.Spec, store: Store, claim: claims.Claim, stop: StopRequest
) -> None:
    """Send what the attempt before had finished and could not send any more.

    Raises:
        Unavailable: the store was away past the deadline, or a stop was asked for meanwhile.
    """
    outbox = Outbox(env.work)
    left = [*(outbox.root / layout.CHECKPOINTS).glob("step-*"), *(outbox.root / "rows").glob("*")]
    if not left:
        return
    log.info("salvage=%d finished by the attempt before", len(left))
    uploader = Uploader(store, env.run, outbox, claim, env.store_deadline_seconds)
    uploader.node = env.node
    uploader.stopped = lambda: stop.since is not None
    if spec.kind == "infer":
        uploader.retrying("picture manifest", uploader.recall)
    uploader.cycle()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _restore(attempt: Attempt) -> None:
    """Fetch the state to go on from, and the metrics up to it."""
    attempt.restored = attempt.progress()
    if attempt.spec.kind != "train":
        return
    attempt.restored = _restore_checkpoint(attempt)
    try:
        rows = attempt.store.read(layout.key(attempt.env.run, layout.METRICS)).splitlines()
    except FileNotFoundError:
        return
    # Rows past the restored step belong to work that was lost and is done again.
    for line in rows:
        with contextlib.suppress(ValueError):  # half a line, or somebody's edit
            row = json.loads(line)
            step = row.get("step") if isinstance(row, dict) else None
            if isinstance(step, int) and step <= attempt.restored:
                attempt.outbox.append(layout.METRICS, row)


def _refuse_strangers(env: Environment, store: Store) -> None:
    """Make sure that the pictures there are this run's own.

    Raises:
        BadSpec: there are some, and nobody has claimed the run.
    """
    prefix = layout.key(env.run, layout.IMAGES, "")
    if next(iter(store.list(prefix)), None) is None:
        return
    try:  # after the list: another node of this run claims it first, and then paints
        store.read(layout.key(env.run, layout.CLAIM))
    except FileNotFoundError as error:
        raise BadSpec(
            f"run {env.run!r}: {store.url}/{prefix} holds pictures of another run; "
            "choose another name"
        ) from error


def _restore_checkpoint(attempt: Attempt) -> int:
    """Fetch the newest committed state that is whole, and return its step; 0 if there is none.

    Raises:
        BadData: there are committed states, and all are damaged.
    """
    env, store = attempt.env, attempt.store
    steps = commits.committed_steps(store, env.run)
    for step in reversed(steps):
        name = layout.step_name(step)
        prefix = layout.key(env.run, layout.CHECKPOINTS, name)
        folder = env.work / "restored" / name
        try:
            download_twice(store, prefix, folder)
        except (BadData, FileNotFoundError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            if step == steps[0]:
                raise BadData(
                    f"run {env.run!r}: no committed step is whole ({error}); repair it, or start "
                    "over under another name"
                ) from error
            log.warning("damaged=%s error=%r; going back to an older step", name, str(error))
            # Not committed any more: it will be done again, and must not count as progress.
            store.delete(f"{prefix}/{layout.COMMITTED}")
        else:
            return step
    return 0


def download_twice(store: Store, prefix: str, folder: Path) -> None:
    """Download a set; one that is not whole is read once more before it counts as damaged.

    A byte that was flipped on its way must not cost a checkpoint.
    """
    try:
        commits.download(store, prefix, folder)
    except BadData as error:
        log.warning("damaged=%s error=%r; reading it once more", prefix, str(error))
        shutil.rmtree(folder, ignore_errors=True)
        commits.download(store, prefix, folder)
