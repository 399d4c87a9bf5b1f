"""Owns what is known of a cluster's nodes, as data: what they are, have, and have given away. Pure.

Must not fetch anything (backends/nodefacts.py) nor judge a run (scheduling.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher import fields

CPU = "cpu"
MEMORY = "memory"
DISK = "ephemeral-storage"
# Kubernetes API reference, Quantity: n, u, m, then powers of 1000, then of 1024, or an exponent.
_SUFFIXES: Mapping[str, float] = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1,
    "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
}  # fmt: skip
_QUANTITY = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([numkKMGTPE]?i?)")


@dataclass(frozen=True, slots=True)
class Taint:
    """What keeps pods away from a node, but for those that tolerate it."""

    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        """Return it as kubectl takes and prints it."""
        return f"{self.key}{'=' if self.value else ''}{self.value}:{self.effect}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of a cluster."""

    name: str
    labels: Mapping[str, str]
    taints: tuple[Taint, ...] = ()
    ready: bool = True
    unschedulable: bool = False
    """Cordoned."""
    architecture: str = ""
    """As container images name it: amd64, arm64."""
    allocatable: Mapping[str, int]
    """NPUs as a count, CPU as millicores, memory and disk as bytes."""
    used: Mapping[str, int] | None = None
    """What its pods with NPUs ask for, in the same units: the others ask for little beside them.
    None: not known, as this user may not list all pods, or not counted, as it has no NPUs."""

    def free(self, resource: str) -> int | None:
        """Return how much of a resource nobody has asked for; None: not known."""
        if self.used is None:
            return None
        return max(0, self.allocatable.get(resource, 0) - self.used.get(resource, 0))


def amount(resource: str, quantity: Any) -> int:
    """Return a quantity of the API in our unit: millicores of CPU, bytes or a count of others.

    What is no quantity counts as nothing.
    """
    if isinstance(quantity, str) and quantity.isdecimal() and len(quantity) < 20:  # nearly all
        return int(quantity) * (1000 if resource == CPU else 1)
    found = _QUANTITY.fullmatch(str(quantity))
    if not found or found[2] not in _SUFFIXES:
        return 0
    try:
        value = float(found[1]) * _SUFFIXES[found[2]]
        return round(value * 1000) if resource == CPU else round(value)
    except (ValueError, OverflowError):
        return 0


def amounts(quantities: Any) -> dict[str, int]:
    """Return a resource list of the API in our units."""
    if not isinstance(quantities, Mapping):
        return {}
    return {name: amount(name, quantity) for name, quantity in quantities.items()}


def add(total: dict[str, int], more: Mapping[str, int]) -> None:
    """Add one list of amounts to another, in place."""
    for name, value in more.items():
        total[name] = total.get(name, 0) + value


def requested(spec: Mapping[str, Any]) -> dict[str, int]:
    """Return what a pod asks for: its containers together, or its largest step of initialisation.

    Sidecars (init containers that restart always) stay and are added; so is the overhead of a
    runtime class, as the scheduler does it.
    """
    running: dict[str, int] = {}
    for container in fields.rows(spec, "containers"):
        add(running, _asked(container))
    largest: dict[str, int] = {}
    sidecars: dict[str, int] = {}
    for container in fields.rows(spec, "initContainers"):
        need = _asked(container)
        if container.get("restartPolicy") == "Always":
            add(sidecars, need)
            need = {}
        for name in {*need, *sidecars}:
            total = need.get(name, 0) + sidecars.get(name, 0)
            largest[name] = max(largest.get(name, 0), total)
    add(running, sidecars)
    for name, value in largest.items():
        running[name] = max(running.get(name, 0), value)
    add(running, amounts(fields.of(spec, "overhead")))
    return running


def node(found: Mapping[str, Any]) -> Node:
    """Return a Node of the API as one of ours; whatever may be missing is."""
    labels = dict(fields.of(found, "metadata", "labels") or {})
    return Node(
        name=fields.name(found),
        labels=labels,
        taints=tuple(
            Taint(row.get("key", ""), row.get("value", ""), row.get("effect", ""))
            for row in fields.rows(found, "spec", "taints")
        ),
        ready=fields.condition(found, "Ready", "True") is not None,
        unschedulable=bool(fields.of(found, "spec", "unschedulable")),
        architecture=fields.text(found, "status", "nodeInfo", "architecture")
        or labels.get("kubernetes.io/arch", ""),
        allocatable=amounts(
            fields.of(found, "status", "allocatable") or fields.of(found, "status", "capacity")
        ),
    )


def _asked(container: Mapping[str, Any]) -> dict[str, int]:
    limits = amounts(fields.of(container, "resources", "limits"))
    return limits | amounts(fields.of(container, "resources", "requests"))  # as the server does
