"""Owns the shapes doctor works with: what was asked for, what a cluster is, the lines that follow.

Must not fetch (backends/clusterfacts.py), judge (clusterdoctor.py and its like) nor print.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from launcher.doctors.rights import Right
from launcher.errors import LauncherError, Misconfigured
from launcher.nodes import Node
from launcher.settings import Target

T = TypeVar("T")
Object = Mapping[str, Any]
State = Literal["ok", "warn", "fail"]

APPLY = "an administrator runs kubectl apply -k k8s/"


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What the cluster said to one question."""

    value: T | None = None
    """None: there is no such thing, or nobody knows."""
    gap: str = ""
    """Why nobody knows; empty if somebody does."""


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at."""

    name: str
    state: State
    text: str
    fix: str = ""
    error: type[LauncherError] = Misconfigured
    """Decides the exit code of a failure."""


def failed(name: str, error: LauncherError) -> Line:
    """Return the line of a failure that another part of the launcher has put into words."""
    return Line(name, "fail", error.text.removeprefix(f"{name}: "), error.hint, type(error))


@dataclass(frozen=True, slots=True)
class Keys:
    """What is told of a Secret: its type, its keys, and what is wrong with a value; no value."""

    type: str
    flaws: Mapping[str, str]
    """Key -> what is wrong with its value; empty if nothing is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the settings ask a cluster for."""

    target: Target
    job: Object
    """The smallest Job that the settings lead to."""
    room: Object
    """Spec of a pod that takes a whole server."""
    problems: Mapping[str, LauncherError] = field(default_factory=dict)
    """Setting -> what is wrong with it; the Job was made with another value in its place."""
    lean: LauncherError | None = None
    """Why no SDXL has memory enough; the Job is one of the small model's, which has."""

    @property
    def pod(self) -> Object:
        """Return the spec of the Job's pods."""
        found: Object = self.job["spec"]["template"]["spec"]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a cluster was found to be."""

    host: str
    context: str
    namespace: str
    down: LauncherError | None = None
    """Why nothing else is known: no server answers, or it takes no question from this user."""
    version: Object = field(default_factory=dict)
    user: Answer[str] = Answer()
    place: Answer[Object] = Answer()
    """The namespace."""
    rights: Mapping[Right, Answer[bool]] = field(default_factory=dict)
    secrets: Mapping[str, Answer[Keys]] = field(default_factory=dict)
    account: Answer[Object] = Answer()
    priority: Answer[Object] = Answer()
    peers: Answer[Object] = Answer()
    """The headless Service that gives pods their names."""
    engine: Answer[str] = Answer()
    """Version of the API of the queue's engine; None: it is not installed."""
    queue: Answer[Object] = Answer()
    queue_priority: Answer[Object] = Answer()
    """Kueue's WorkloadPriorityClass."""
    trial: LauncherError | str = ""
    """By what the server refuses a dry run of the Job or its pod, or why the pod has to wait."""
    intruder: Answer[str] = Answer()
    """By what words the server refuses a pod that mounts what no run needs; None: it takes it."""
    nodes: Answer[tuple[Node, ...]] = Answer()
