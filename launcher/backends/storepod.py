"""Owns the pod that tries the store: the Job's own pod with another program, no NPU, a short life.

Whatever happens it is removed again. Must not know how a store is tried (jobs/doctor.py).
"""

from __future__ import annotations

import json
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from launcher import fields
from launcher.backends.apiserver import ApiServer, api_exception, translated
from launcher.doctors.findings import Line, Object, Wanted, failed
from launcher.errors import LauncherError
from launcher.why import podreasons

PROGRAM = ["python", "-m", "jobs.doctor"]
ROOM = {
    "requests": {"cpu": "100m", "memory": "256Mi", "ephemeral-storage": "64Mi"},
    "limits": {"cpu": "1", "memory": "1Gi"},
}
"""Of a store's client and 10 MiB of data; both sides are given, since a quota may ask for them."""
LIFE_SECONDS = 3600
"""activeDeadlineSeconds: the pull of an image with CANN (11 GB) counts, too."""
_OVERDUE = "DeadlineExceeded"
GRACE_SECONDS = 5
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 30.0
"""How long a state that may pass by itself, such as a full node, is waited for."""
Say = Callable[[str], None]


def line(api: ApiServer, wanted: Wanted, say: Say) -> Line:
    """Return what came of trying the store from a pod with the job's image, account and Secrets."""
    body = pod(wanted)
    name = body["metadata"]["name"]
    place = f"/api/v1/namespaces/{api.namespace}/pods"
    try:
        with translated(api.host, name), _removed(api, f"{place}/{name}", say):
            api.post(place, body)
            say(f"pod {name}: tries the store")
            return _judged(_ended(api, f"{place}/{name}", say), wanted)
    except LauncherError as error:
        return failed("pod", error)


def pod(wanted: Wanted) -> dict[str, Any]:
    """Return the pod: the Job's, so that image, account, mounts and network are what a run has."""
    template = wanted.job["spec"]["template"]
    labels = template.get("metadata", {}).get("labels", {})
    spec = {**template["spec"]}
    # Not the queue's: it waits for nobody, and asks for next to nothing.
    for key in ("schedulerName", "subdomain", "priorityClassName"):
        spec.pop(key, None)
    main = {**spec["containers"][0], "args": PROGRAM, "resources": ROOM}
    # What a field of the Job's own pod would say (its index, its UID) is not there.
    main["env"] = [
        row for row in main.get("env", ()) if row["name"] != "JOB_SPEC" and "valueFrom" not in row
    ]
    spec |= {
        "containers": [main],
        "activeDeadlineSeconds": LIFE_SECONDS,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
    }
    name = f"doctor-{secrets.token_hex(4)}"
    # The label `name` brings it under the NetworkPolicy of runs.
    mine = labels | {"app.kubernetes.io/component": "doctor"}
    metadata = {"name": name, "labels": mine}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@contextmanager
def _removed(api: ApiServer, path: str, say: Say) -> Iterator[None]:
    """Remove the pod at the end, also when somebody interrupts or ends this process."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        try:
            with translated(api.host, ""):
                _delete(api, path)
        except LauncherError as error:
            say(f"warning: {path.rpartition('/')[2]} stays: {error.text}; kubectl delete pod")
        finally:
            signal.signal(signal.SIGTERM, before)


def _delete(api: ApiServer, path: str) -> None:
    try:
        api.delete(path, {"apiVersion": "v1", "kind": "DeleteOptions"})
    except api_exception() as error:
        if error.status != 404:
            raise


def _ended(api: ApiServer, path: str, say: Say) -> Line | Mapping[str, Any]:
    """Wait for the pod's end and return it, or the line that tells why there is none."""
    began, told = time.monotonic(), ""
    while True:
        found = api.get(path)
        if fields.text(found, "status", "phase") in ("Succeeded", "Failed"):
            return dict(found)
        waited = time.monotonic() - began
        if (line := _stuck(api, found, patient=waited < PATIENCE_SECONDS)) is not None:
            return line
        if waited > LIFE_SECONDS + PATIENCE_SECONDS:
            return Line("pod", "fail", f"has not ended in {LIFE_SECONDS} s", "kubectl get events")
        now = _phase(found)
        if now != told:
            say(f"pod {path.rpartition('/')[2]}: {now}")
            told = now
        time.sleep(POLL_SECONDS)


def _phase(found: Object) -> str:
    if not fields.text(found, "spec", "nodeName"):
        return "waits for a node"
    if fields.text(found, "status", "phase") == "Running":
        return "runs"
    return f"is started on {fields.text(found, 'spec', 'nodeName')} (an image is pulled once)"


def _stuck(api: ApiServer, found: Object, *, patient: bool) -> Line | None:
    """Return the line of a pod that will not start; None while it still may."""
    events = _events(api, found)
    why = podreasons.blocked(found, events)
    if why is not None and (why.stuck or not patient):
        return Line("pod", "fail", why.line, why.next_step)
    if patient or fields.text(found, "spec", "nodeName"):
        return None
    placed = fields.text(fields.condition(found, "PodScheduled", "False"), "message")
    text = f"no node takes it: {placed or 'the scheduler says nothing'}"
    return Line("pod", "fail", text, "see the lines `labels` and `taints`")


def _events(api: ApiServer, found: Object) -> list[Object]:
    """Return the events that tell of the pod's troubles; none if this user may not list them."""
    path = f"/api/v1/namespaces/{api.namespace}/events"
    query = [("fieldSelector", f"involvedObject.uid={fields.uid(found)}")]
    try:
        return fields.rows(api.get(path, query), "items")
    except api_exception():
        return []


def _judged(ended: Line | Mapping[str, Any], wanted: Wanted) -> Line:
    """Return the line of a pod that has ended."""
    if isinstance(ended, Line):
        return ended
    node, state = fields.text(ended, "spec", "nodeName"), fields.ended(ended) or {}
    message = fields.text(state, "message")
    try:
        report = json.loads(message)
        rows = {row["check"]: row for row in report["checks"]}
    except (ValueError, KeyError, TypeError):
        return _silent(ended, state, message)
    wrong = next((row for row in rows.values() if not row["ok"]), None)
    where = f"{wanted.target.store} from a pod on {node} ({report.get('machine')})"
    if wrong is None:
        return Line("pod", "ok", f"{where}: {', '.join(rows)}")
    fix = (
        "store_endpoint and the Secret of store_secret are what pods see of the store; the"
        " NetworkPolicy (k8s/base/networkpolicy.yaml) lets them out to ports 443 and 9000 alone"
    )
    return Line("pod", "fail", f"{where}: {wrong['check']}: {wrong['text']}", fix)


def _silent(ended: Object, state: Object, message: str) -> Line:
    """Return the line of a pod that ended without a report."""
    if "No module named jobs" in message:
        text = "the image has no jobs.doctor: it is older than this launcher"
        return Line("pod", "fail", text, "build the image of this version")
    why = fields.text(ended, "status", "reason") or fields.text(state, "reason") or "no report"
    words = fields.text(ended, "status", "message") or message
    code = state.get("exitCode")
    told = f"{why}{f' (exit {code})' if code is not None else ''}"
    slow = "it may have been pulling the image: run doctor again" if why == _OVERDUE else ""
    return Line("pod", "fail", f"{told}: {words[-300:]}" if words else told, slow)
