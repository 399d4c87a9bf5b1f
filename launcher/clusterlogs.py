"""Owns `logs` of a run of a cluster: which pods, in which order, until when, and how it ends.

All pods of all attempts: what is left of them on their nodes, and in the store what is not. Must
not read a log itself (podreader.py) nor judge a run (explain.py).
"""

from __future__ import annotations

import heapq
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from jobs.stores import Store
from launcher import clusterrecords, clusterruns, fields, goneruns, loglines, output, storage
from launcher.backends.kubernetes import Kubernetes
from launcher.backends.podlogs import PodLog, started
from launcher.clusterstatus import look
from launcher.errors import Forbidden, Misconfigured, NotFound, RunFailed, Unreachable, Usage
from launcher.loglines import SECOND, Choice, Line
from launcher.podreader import Batch, Reader
from launcher.runwatch import Trouble, Watched
from launcher.settings import Settings, Target
from launcher.storedlogs import Copies, PodCopy

Pod = Mapping[str, Any]

AT_ONCE = 1000
"""Lines that are printed together."""
WAITING = 64
"""Batches that wait to be printed; then the nodes wait, too."""


def show(settings: Settings, run: str, choice: Choice, *, follow: bool) -> None:
    """Print the log of a run; following, until it ends, and end as it did.

    Raises:
        RunFailed: the run that was followed did not succeed.
        NotFound: neither the cluster nor the store has it.
        Usage: it has no such rank.
        LauncherError: the cluster refuses, or does not answer.
        KeyboardInterrupt: the person went away; the run goes on.
    """
    cluster = clusterruns.connected(settings, run)
    try:
        job = cluster.find(run)
    except (NotFound, Unreachable) as error:
        goneruns.show(store_of({}, settings.target), run, choice, follow=follow, why=error)
        return
    log = RunLog(cluster, job, choice, settings.target)
    if not follow:
        log.print()
        return
    try:
        log.follow()
    except KeyboardInterrupt:
        if not log.watched.ended:
            output.say(f"\n{run} goes on: `launcher logs {run} -f` follows it")
        raise
    log.end()


@dataclass(frozen=True, slots=True)
class _Failed:
    """What a thread could not go on with."""

    error: BaseException


class RunLog:
    """The logs of one run's pods, one node's after another's or side by side."""

    def __init__(
        self, cluster: Kubernetes, job: Mapping[str, Any], choice: Choice, target: Target
    ) -> None:
        """Look at the run; nothing is printed yet.

        Raises:
            Usage: it has no such rank.
        """
        self.run = fields.name(job)
        self._cluster = cluster
        self._choice = choice
        self._target = target
        self.store = store_of(job, target)
        self.nodes = _nodes(job, choice.rank)
        several = (fields.number(job, "spec", "completions") or 1) > 1 and choice.rank is None
        self._prefix = b"node-%d | " if several else b""
        self._told: set[str] = set()
        self.watched = Watched(cluster, job, self._say)
        self._out: queue.Queue[tuple[int, Batch] | _Failed | int] = queue.Queue(WAITING)

    def print(self) -> None:
        """Print what there is, the nodes' lines in order of time."""
        self.watched.refresh()
        rows = [self._wanted(node) for node in self.nodes]
        together: list[bytes] = []
        printed = False
        for _, text in heapq.merge(*rows, key=lambda row: row[0]):
            printed = True
            together.append(text)
            if len(together) == AT_ONCE:
                output.raw(b"".join(together))
                together.clear()
        output.raw(b"".join(together))
        if not printed and not self.watched.ended:
            self.watched.tell_why()

    def _wanted(self, node: int) -> Iterator[tuple[int, bytes]]:
        lines = (line for batch in self._batches(node, follow=False) for line in batch.lines)
        wanted: Any = (line for line in lines if self._choice.wants(line))
        if self._choice.tail is not None:
            wanted = deque(wanted, maxlen=self._choice.tail)
        for line in wanted:
            yield line.when, self._shown(node, [line])

    def follow(self, write: Callable[[bytes], None] = output.raw) -> None:
        """Print what there is and what comes, until the run and all its logs have ended.

        Raises:
            LauncherError: the cluster refuses, or does not answer at the start.
        """
        self.watched.refresh()
        threading.Thread(target=self._watch, daemon=True).start()
        for node in self.nodes:
            threading.Thread(target=self._read, args=(node,), daemon=True).start()
        held = {node: _Held(self._choice) for node in self.nodes}
        left = set(self.nodes)
        while left:
            told = self._out.get()
            if isinstance(told, _Failed):
                raise told.error
            if isinstance(told, int):
                left.discard(told)
                lines = held[told].rest()
                write(self._shown(told, lines))
                continue
            node, batch = told
            if text := self._shown(node, held[node].passed(batch)):
                write(text)

    def _watch(self) -> None:
        try:
            self.watched.watch()
        except BaseException as error:
            self._out.put(_Failed(error))

    def _read(self, node: int) -> None:
        try:
            for batch in self._batches(node, follow=True):
                self._out.put((node, batch))
            self._out.put(node)
        except BaseException as error:
            self._out.put(_Failed(error))

    def _batches(self, node: int, *, follow: bool) -> Iterator[Batch]:
        """Yield the log of a node: of all its pods, one after the other."""
        copies = Copies(self.store, self.run, self._say, self._told)
        done: set[str] = set()
        until, live = 0, False
        while True:
            pod, last = self.watched.next_pod(node, done, wait=follow and live)
            if pod is None and not last and follow:
                live = True
                yield Batch((), live=True)
                continue
            begun = (started(pod) or 0) if pod else 0
            for copied in copies.found(node):
                # Whose pod is gone: another one came between those that are there.
                if copied.started > until and (pod is None or copied.started < begun * SECOND):
                    yield Batch(copies.lines(copied), live=live)
            if pod is None:
                return
            reader = self._reader(pod, PodCopy(copies, node, begun), follow=follow)
            for batch in reader.batches(follow=follow):
                live = live or (batch.live and last)
                yield replace(batch, live=live)
            done.add(fields.uid(pod))
            until = max(reader.seen.newest, begun * SECOND)

    def _reader(self, pod: Pod, copy: PodCopy, *, follow: bool) -> Reader:
        since = self._choice.since
        return Reader(
            PodLog(self._cluster.api, pod),
            copy,
            copy.started,
            lambda text: self._say(f"pod {fields.name(pod)}: {text}"),
            Trouble(self.watched, fields.name(pod), patient=follow),
            since=None if since is None else since // SECOND,
        )

    def _shown(self, node: int, lines: list[Line]) -> bytes:
        prefix = self._prefix % node if self._prefix else b""
        return loglines.printed(lines, prefix)

    def _say(self, text: str) -> None:
        output.say(f"{self.run}: {text}")

    def end(self) -> None:
        """Tell how the run ended.

        Raises:
            RunFailed: it did not succeed.
        """
        found = None
        if not self.watched.gone:
            with suppress(NotFound, Unreachable, Forbidden):  # its end is known, its words are not
                found = look(self._cluster, self.run, self._target).explanation
        if self.watched.gone:
            goneruns.end(self.store, self.run)
        elif self.watched.succeeded and (found is None or found.state == "succeeded"):
            self._say(f"succeeded: {found.line}" if found else "succeeded")
        else:
            line, step = (found.line, found.next_step) if found else ("failed", "")
            raise RunFailed(f"run {self.run!r}: {line}", step)


class _Held:
    """Holds back what was there at the start, of which only the last lines are wanted."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._held: deque[Line] | None = None
        if choice.tail is not None:
            self._held = deque(maxlen=choice.tail)

    def passed(self, batch: Batch) -> list[Line]:
        lines = self._choice.of(batch.lines)
        if self._held is None:
            return lines
        if batch.live:
            return [*self.rest(), *lines]
        self._held.extend(lines)
        return []

    def rest(self) -> list[Line]:
        """Return what is held, and hold nothing from now on."""
        found = list(self._held or ())
        self._held = None
        return found


def _nodes(job: Mapping[str, Any], rank: int | None) -> list[int]:
    """Return the pod indexes whose logs are wanted.

    Raises:
        Usage: there is no such rank.
    """
    nodes = fields.number(job, "spec", "completions") or 1
    if rank is None:
        return list(range(nodes))
    told = clusterrecords.environment(job).get("JOB_WORKERS", "")
    workers = int(told) if told.isdecimal() and int(told) else 1
    if rank >= workers * nodes:
        last = workers * nodes - 1
        raise Usage(f"--rank {rank}: the run has no such worker", f"--rank 0 to {last}")
    return [rank // workers]


def store_of(job: Mapping[str, Any], target: Target) -> Store | None:
    """Return the store with a run's copies as this machine reaches it; None: it cannot."""
    from jobs.access import Access
    from jobs.errors import BadSpec

    known = clusterrecords.environment(job)
    try:
        if not known.get("JOB_STORE"):
            return storage.of_target(target)
        access = Access.read(known)
        if target.store_endpoint_here:
            access = replace(access, endpoint=target.store_endpoint_here)
        return storage.opened(known["JOB_STORE"], access)
    except (BadSpec, Misconfigured):
        return None
