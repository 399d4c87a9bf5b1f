"""Owns which nodes a pod may go to: selector, required affinity, taints, state of the node. Pure.

Must not count resources nor find words (scheduling.py). The rules are the scheduler's own
(kubernetes.io: Assigning Pods to Nodes; Taints and Tolerations).
"""

from __future__ import annotations

from collections.abc import Mapping

from launcher import fields
from launcher.fields import Object
from launcher.nodes import Node, Taint

# Kubernetes sets and removes these itself, as a node comes and goes.
_PASSING = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/")
_REQUIRED = ("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")


def selector(spec: Object) -> dict[str, str]:
    """Return the labels that a pod's nodeSelector asks for."""
    found = fields.of(spec, "nodeSelector")
    return {k: str(v) for k, v in found.items()} if isinstance(found, Mapping) else {}


def selects(spec: Object, node: Node) -> bool:
    """Return whether a node has the labels that a pod asks for."""
    if any(node.labels.get(key) != value for key, value in selector(spec).items()):
        return False
    terms = fields.rows(spec, *_REQUIRED, "nodeSelectorTerms")
    return not terms or any(_meets(term, node) for term in terms)


def repelling(spec: Object, node: Node) -> tuple[Taint, ...]:
    """Return the taints of a node that keep a pod away and do not pass by themselves."""
    return tuple(
        taint
        for taint in node.taints
        if taint.effect in ("NoSchedule", "NoExecute")
        and not taint.key.startswith(_PASSING)
        and not any(_tolerates(row, taint) for row in fields.rows(spec, "tolerations"))
    )


def working(node: Node) -> bool:
    """Return whether a node takes pods at all: ready, not cordoned, not given up."""
    passing = [t for t in node.taints if t.effect != "PreferNoSchedule"]
    return (
        node.ready
        and not node.unschedulable
        and not any(taint.key.startswith(_PASSING) for taint in passing)
    )


def _meets(term: Object, node: Node) -> bool:
    wanted = fields.rows(term, "matchExpressions")
    by_name = fields.rows(term, "matchFields")  # metadata.name is all there is
    if not wanted and not by_name:
        return False
    return all(_holds(row, node.labels) for row in wanted) and all(
        _holds(row, {"metadata.name": node.name}) for row in by_name
    )


def _holds(row: Object, labels: Mapping[str, str]) -> bool:
    have = labels.get(str(row.get("key")))
    listed = row.get("values")
    values = [str(value) for value in listed] if isinstance(listed, list) else []
    match row.get("operator"):
        case "In":
            return have in values
        case "NotIn":
            return have not in values
        case "Exists":
            return have is not None
        case "DoesNotExist":
            return have is None
        case "Gt" | "Lt" as operator:
            try:
                ours, theirs = int(str(have)), int(values[0])
            except (ValueError, IndexError):
                return False
            return ours > theirs if operator == "Gt" else ours < theirs
        case _:
            return False


def _tolerates(row: Object, taint: Taint) -> bool:
    if row.get("effect") not in (None, "", taint.effect):
        return False
    if row.get("operator") == "Exists":
        return row.get("key") in (None, "", taint.key)
    return row.get("key") == taint.key and (row.get("value") or "") == taint.value
