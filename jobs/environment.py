"""Owns the environment of a job: which variables there are and what they mean; the log's form.

Must not hold a hyper-parameter: those are the spec's. Every program of a job reads it once.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jobs.access import Access
from jobs.errors import BadSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the manifest (or the local backend) tells a job about where it runs.

    TERMINATION_LOG, the file for the one-line reason, is read by the supervisor alone, which
    needs it even where the rest of the environment is wrong.
    """

    spec: str
    """JOB_SPEC: the spec as JSON."""
    run: str
    """JOB_RUN: name of the run, the first part of its keys in the store."""
    store: str
    """JOB_STORE: root of the store."""
    access: Access = field(default_factory=Access)
    """JOB_STORE_ENDPOINT, _REGION, _ADDRESSING, _CHECKSUM: how an object store is spoken to."""
    uid: str
    """JOB_UID: identity of the submission; every attempt of it has the same."""
    work: Path
    """JOB_WORK: private directory of this attempt's pod; its files may be gone afterwards."""
    cache: Path = Path()
    """JOB_CACHE: directory for models and data sets from the store, perhaps shared by the node's
    jobs; <work>/cache if it is not set."""
    cluster: str = ""
    """JOB_CLUSTER: name of the cluster, for the claim."""
    namespace: str = ""
    """JOB_NAMESPACE: namespace of the Job, for the claim."""
    workers: int = 1
    """JOB_WORKERS: msrun workers on this node, one per NPU."""
    nodes: int = 1
    """JOB_NODES: nodes of the job."""
    index: int = 0
    """JOB_COMPLETION_INDEX: this node, set by Kubernetes."""
    master: str = ""
    """JOB_MASTER: name of node 0, by which the others of a training find it."""
    master_port: int = 0
    """JOB_MASTER_PORT: where node 0's supervisor listens; msrun gets another one."""
    rendezvous_seconds: float = 1800
    """JOB_RENDEZVOUS_SECONDS: how long nodes wait for each other."""
    device: str = "Ascend"
    """JOB_DEVICE: Ascend or CPU; CPU whatever it says where the image's JOB_FRAMEWORK is cpu."""
    threads: int = 0
    """JOB_THREADS: CPU cores a worker is pinned to; 0 leaves it alone."""
    stall_seconds: float = 2700
    """JOB_STALL_SECONDS: a worker silent for longer is killed."""
    store_deadline_seconds: float = 1800
    """JOB_STORE_DEADLINE_SECONDS: how long a store that is away is retried."""
    grace_seconds: float = 120
    """JOB_GRACE_SECONDS: time between SIGTERM and SIGKILL."""

    @property
    def node(self) -> int | None:
        """Which one of several nodes this is; None for the only one."""
        return self.index if self.nodes > 1 else None

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> Environment:
        """Return the environment.

        Raises:
            BadSpec: a variable is missing or not a number; all are named.
        """
        wrong: list[str] = []

        def text(name: str, default: str | None = None) -> str:
            value = variables.get(name, default)
            if value is None or (value == "" and default is None):
                wrong.append(f"{name}: missing")
                return ""
            return value

        def number(name: str, default: float, least: float = 0) -> float:
            raw = variables.get(name, "") or str(default)
            try:
                value = float(raw)
            except ValueError:
                value = -1
            if not least <= value < 1e9:
                wrong.append(f"{name}: {raw!r} is not a number of at least {least:g}")
            return value

        access = Access()
        try:
            access = Access.read(variables)
        except BadSpec as error:
            wrong.append(str(error))
        device = text("JOB_DEVICE", "Ascend")
        if variables.get("JOB_FRAMEWORK") == "cpu":  # an image for trying things without NPUs
            device = "CPU"
        if device not in ("Ascend", "CPU"):
            wrong.append(f"JOB_DEVICE: {device!r} is neither Ascend nor CPU")
        found = cls(
            spec=text("JOB_SPEC"),
            run=text("JOB_RUN"),
            store=text("JOB_STORE"),
            access=access,
            uid=text("JOB_UID"),
            work=Path(text("JOB_WORK")),
            cache=Path(text("JOB_CACHE", "") or Path(variables.get("JOB_WORK", "")) / "cache"),
            cluster=text("JOB_CLUSTER", ""),
            namespace=text("JOB_NAMESPACE", ""),
            workers=int(number("JOB_WORKERS", 1, 1)),
            nodes=int(number("JOB_NODES", 1, 1)),
            index=int(number("JOB_COMPLETION_INDEX", 0)),
            master=text("JOB_MASTER", ""),
            master_port=int(number("JOB_MASTER_PORT", 0)),
            rendezvous_seconds=number("JOB_RENDEZVOUS_SECONDS", 1800),
            device=device,
            threads=int(number("JOB_THREADS", 0)),
            stall_seconds=number("JOB_STALL_SECONDS", 2700, 1),
            store_deadline_seconds=number("JOB_STORE_DEADLINE_SECONDS", 1800),
            grace_seconds=number("JOB_GRACE_SECONDS", 120),
        )
        if wrong := wrong + found._wrong_index():
            raise BadSpec(f"environment: {'; '.join(wrong)}")
        return found

    def _wrong_index(self) -> list[str]:
        if self.index < self.nodes:
            return []
        return [f"JOB_COMPLETION_INDEX: {self.index}, and JOB_NODES is {self.nodes}"]


@dataclass(frozen=True, slots=True)
class Worker:
    """Which of the workers this process is, as msrun tells it."""

    rank: int
    world: int

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> Worker:
        """Return rank and world; a program started by hand is the only worker."""
        return cls(int(variables.get("RANK_ID", "0")), int(variables.get("MS_WORKER_NUM", "1")))


def log_to_stdout(level: int = logging.INFO) -> None:
    """Write one line an event: UTC, level letter, logger, then key=value."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        _Line("%(asctime)s %(levelname).1s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("jobs").setLevel(level)


class _Line(logging.Formatter):
    converter = staticmethod(time.gmtime)
