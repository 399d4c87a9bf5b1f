"""What is said of a run as the text of a golden file, and what it was made of as JSON.

Shared by the tests that bring runs about on a real control plane (cluster/stagehand.py) and those
that read what was recorded there (test_explain.py).
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from launcher.nodes import Node, Taint
from launcher.snapshot import Snapshot
from launcher.why import explain

GOLDEN = Path(__file__).parent / "golden" / "explain"
_TIME = re.compile(r"\b\d+[smhd](?: \d+[smh])?\b")
# Of the objects that a run consists of, all that an explanation could read.
_METADATA = (
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "labels",
    "annotations",
)
_POD = (
    "nodeName", "nodeSelector", "affinity", "tolerations", "schedulerName", "schedulingGates",
    "terminationGracePeriodSeconds",
)  # fmt: skip
_JOB = ("parallelism", "completions", "backoffLimitPerIndex", "activeDeadlineSeconds", "suspend")
_EVENT = (
    "involvedObject",
    "reason",
    "message",
    "firstTimestamp",
    "lastTimestamp",
    "eventTime",
    "series",
)


def words(found: explain.Explanation) -> str:
    """Return an explanation as the text of a golden file."""
    rows = [f"{found.state}: {found.line}", f"next: {found.next_step}"]
    rows += [f"note: {note}" for note in found.notes]
    rows.append(
        f"word={found.word} stuck={found.stuck} code={found.code} attempt={found.attempt}"
        f" retries={found.retries_used}/{found.retries}"
    )
    return "\n".join(rows) + "\n"


def untimed(text: str) -> str:
    return _TIME.sub("TIME", text)


def anonymous(found: Snapshot, namespace: str) -> dict[str, Any]:
    """Return a snapshot as JSON values, without what no explanation reads."""
    row = {
        "job": _trimmed(found.job, _JOB),
        "pods": [_trimmed(pod, _POD) for pod in found.pods],
        "events": [{key: event[key] for key in _EVENT if event.get(key)} for event in found.events],
        "workload": found.workload,
        "queue": list(found.queue),
        "pod_group": found.pod_group,
        "nodes": None if found.nodes is None else [asdict(node) for node in found.nodes],
        "now": found.now.isoformat(),
    }
    return dict(json.loads(json.dumps(row).replace(namespace, "team")))


def revived(row: dict[str, Any]) -> Snapshot:
    """Return the snapshot that `anonymous` made plain."""
    nodes = row["nodes"]
    if nodes is not None:
        nodes = tuple(
            Node(**{**node, "taints": tuple(Taint(**taint) for taint in node["taints"])})
            for node in nodes
        )
    return Snapshot(
        job=row["job"], pods=tuple(row["pods"]), events=tuple(row["events"]),
        workload=row["workload"], queue=tuple(row["queue"]), pod_group=row["pod_group"],
        nodes=nodes, now=datetime.fromisoformat(row["now"]),
    )  # fmt: skip


def blind(found: Snapshot) -> Snapshot:
    """Return what a user sees who may not list nodes."""
    return replace(found, nodes=None)


def _trimmed(found: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    metadata = {key: value for key, value in found["metadata"].items() if key in _METADATA}
    spec = {key: value for key, value in found["spec"].items() if key in keys}
    for container in found["spec"].get("containers") or ():
        part = {key: container[key] for key in ("name", "image", "resources")}
        spec.setdefault("containers", []).append(part)
    return {"metadata": metadata, "spec": spec, "status": found.get("status") or {}}
