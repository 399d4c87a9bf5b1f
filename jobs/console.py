"""Owns the copy of what a pod prints: each line with its time, in files that the uploader sends.

    <work>/logs/node-0/20260824T103107123Z-0000.log     node 0, started then, first part

A node keeps only the newest piece of a pod's log, and nothing once the pod is gone. Must not know
what is printed, nor ever stand in the way of it: a full disk or a store that is away ends the copy,
not the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from jobs import layout
from jobs.environment import Environment
from jobs.stores import Store, open_store

PART_BYTES = 1 << 20
"""A part that is full is sent once; the newest one again and again while it grows."""
SEND_SECONDS = 5.0
"""How long the last words may hold up the end of a pod; the grace period may be over by then."""
DRAIN_SECONDS = 2.0
"""How long what is printed last may take; a child that lives on would hold the pipe for ever."""


def first_line(variables: Mapping[str, str]) -> str:
    """Return what a pod of several says first: `kubectl logs job/RUN` picks any one of them."""
    run, nodes = variables.get("JOB_RUN", ""), variables.get("JOB_NODES", "1")
    if not run or not nodes.isdecimal() or int(nodes) <= 1:
        return ""
    labels = f"batch.kubernetes.io/job-name={run},batch.kubernetes.io/job-completion-index=0"
    node = variables.get("JOB_COMPLETION_INDEX", "0")
    return (
        f"node={node} nodes={nodes}; rank 0: kubectl logs -f -l {labels};"
        f" all: launcher logs {run} -f"
    )


def recorded(main: Callable[[], int], variables: Mapping[str, str] = os.environ) -> int:
    """Return what `main` returns; what it and its children print is copied meanwhile."""
    folder = _folder(variables)
    if folder is None:
        return main()
    recorder = _Recorder(folder)
    try:
        return main()
    finally:
        recorder.close()
        sender = threading.Thread(target=_send, args=(folder, variables), daemon=True)
        sender.start()
        sender.join(SEND_SECONDS)


def stamp(nanoseconds: int) -> bytes:
    """Return a time (ns since the epoch, UTC) as the kubelet writes it before a line."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % rest


def _folder(variables: Mapping[str, str]) -> Path | None:
    work, node = variables.get("JOB_WORK", ""), variables.get("JOB_COMPLETION_INDEX", "") or "0"
    if not work or not node.isdecimal():
        return None
    return Path(work) / layout.LOGS / layout.console_folder(int(node))


class _Recorder:
    """Stands between this process and its stdout: a pipe, a thread, and a file beside."""

    def __init__(self, folder: Path) -> None:
        now = time.time_ns()
        self._folder, self._name = folder, layout.console_name(now)
        self._parts, self._size = 0, 0
        self._file = self._open(folder)
        self._begun = b""
        """A line that has no end yet."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = (os.dup(1), os.dup(2))
        source, target = os.pipe()
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.close(target)
        self._thread = threading.Thread(target=self._copy, args=(source,), daemon=True)
        self._thread.start()

    def _open(self, folder: Path) -> BinaryIO | None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return (folder / f"{self._name}-{self._parts:04d}.log").open("wb", buffering=0)
        except OSError:
            return None

    def _copy(self, source: int) -> None:
        while chunk := os.read(source, 1 << 16):
            # Before it is passed on: the node's time of a line is never earlier than ours.
            now = stamp(time.time_ns())
            rest = memoryview(chunk)
            with contextlib.suppress(OSError):  # nobody reads it; the run goes on
                while rest:
                    rest = rest[os.write(self._saved[0], rest) :]
            *lines, self._begun = (self._begun + chunk).split(b"\n")
            self._write(b"".join(b"%b %b\n" % (now, line) for line in lines))
        if self._begun:
            self._write(b"%b %b\n" % (stamp(time.time_ns()), self._begun))
        os.close(source)

    def _write(self, text: bytes) -> None:
        if self._file is None or not text:
            return
        try:
            self._file.write(text)
            self._size += len(text)
            if self._size >= PART_BYTES:
                self._file.close()
                self._parts, self._size = self._parts + 1, 0
                self._file = self._open(self._folder)
        except OSError:
            self._file = None

    def close(self) -> None:
        """Give stdout and stderr back, once all that was printed has passed."""
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in zip((1, 2), self._saved, strict=True):
            os.dup2(saved, number)
        self._thread.join(DRAIN_SECONDS)


def _send(folder: Path, variables: Mapping[str, str]) -> None:
    """Send what the uploader has not: it ends before the last lines are printed."""
    with contextlib.suppress(Exception):  # the results are what counts, and are there
        env = Environment.read(variables)
        store = open_store(env.store, env.access)
        if _ours(store, env):
            prefix = layout.key(env.run, layout.LOGS, folder.name, "")
            there = {entry.key: entry.size for entry in store.list(prefix)}
            for path in sorted(folder.glob("*.log")):
                if there.get(prefix + path.name) != path.stat().st_size:
                    store.put(prefix + path.name, path)


def _ours(store: Store, env: Environment) -> bool:
    """Say whether the run is this submission's, and not one whose name was taken."""
    claim = json.loads(store.read(layout.key(env.run, layout.CLAIM)))
    return bool(claim["uid"] == env.uid)
