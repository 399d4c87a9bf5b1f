"""Owns the fetching of all that a cluster says of one run: Job, pods, events, queue, node facts.

Requests that do not need each other's answers go out side by side. Must not interpret what it gets
(explain.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

from launcher import fields
from launcher.backends import nodefacts
from launcher.backends.apiserver import ApiServer, api_exception, translated
from launcher.errors import Misconfigured, NotFound
from launcher.fields import Object
from launcher.nodes import Node
from launcher.snapshot import Snapshot

JOBS = "/apis/batch/v1/namespaces/{namespace}/jobs"
PODS = "/api/v1/namespaces/{namespace}/pods"
EVENTS = "/api/v1/namespaces/{namespace}/events"
WORKLOADS = (
    "/apis/kueue.x-k8s.io/v1beta2/namespaces/{namespace}/workloads",
    "/apis/kueue.x-k8s.io/v1beta1/namespaces/{namespace}/workloads",  # before Kueue 0.15
)
POD_GROUPS = "/apis/scheduling.volcano.sh/v1beta1/namespaces/{namespace}/podgroups"
MANAGED = ("app.kubernetes.io/managed-by", "launcher")
RUN_LABEL = "batch.kubernetes.io/job-name"
MOST_WAITING = 500
"""Workloads that are read for a run's position in its queue; each is some kilobytes."""
AT_ONCE = 8
TELLING_PODS = 16
"""Pods whose events are read, those that don't run first: one tells what a hundred would."""
OVERDUE = timedelta(seconds=30)
"""A pod that is still there so long after its grace period lost its node; kubelets need seconds."""


def job(api: ApiServer, run: str) -> Mapping[str, Any]:
    """Return a run's Job.

    Raises:
        NotFound: there is no such Job.
        Misconfigured: it is not the launcher's, or there is no such namespace.
        Forbidden, Unreachable: the cluster refuses, or does not answer.
    """
    with translated(api.host, run):
        try:
            found = api.get(f"{JOBS.format(namespace=api.namespace)}/{run}")
        except api_exception() as error:
            if error.status != 404:
                raise
            check_namespace(api)
            raise NotFound(
                f"run {run!r}: no such job in namespace {api.namespace} of {api.host}",
                "-n names another namespace, --context another cluster; launcher list shows the"
                " runs",
            ) from error
    if fields.of(found, "metadata", "labels", MANAGED[0]) != MANAGED[1]:
        raise Misconfigured(
            f"job {run!r}: was not submitted by the launcher (no label {'='.join(MANAGED)})",
            f"kubectl describe job/{run} -n {api.namespace}; the launcher leaves it alone",
        )
    return dict(found)


def check_namespace(api: ApiServer) -> None:
    """Tell a namespace that is missing; the server lists nothing there, and finds nothing.

    Raises:
        Misconfigured: there is no such namespace. Whoever may not ask is not told.
    """
    exception = api_exception()
    try:
        api.get(f"/api/v1/namespaces/{api.namespace}")
    except exception as error:
        if error.status == 404:
            raise Misconfigured(
                f"namespace {api.namespace!r}: does not exist in {api.host}",
                "-n names another; or create it: kubectl apply -k k8s/",
            ) from error


def snapshot(api: ApiServer, run: str) -> Snapshot:
    """Return all that the cluster says of a run.

    What this user may not read of queues and nodes is left out.

    Raises:
        LauncherError: as `job` does.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool, translated(api.host, run):
        listed = pool.submit(pods_of, api, run)
        found = job(api, run)
        pods = sorted(listed.result(), key=_made)
        told = [pool.submit(_events, api, row) for row in (found, *_telling(pods))]
        workload = pool.submit(_workload, api, found)
        waiting = pool.submit(_waiting, api, found)
        group = pool.submit(_allowed, lambda: _pod_group(api, found))
        now = datetime.now(UTC)
        nodes = pool.submit(_nodes, api, found) if _asks_nodes(pods, now) else None
        (queue, no_kueue), gang = workload.result(), group.result()
        told += [pool.submit(_events, api, row) for row in (queue, gang) if row]
        return Snapshot(
            job=found,
            pods=tuple(pods),
            events=_sorted(told),
            workload=queue,
            no_kueue=no_kueue,
            queue=waiting.result(),
            pod_group=gang,
            nodes=nodes.result() if nodes else None,
            now=now,
        )


def pods_of(api: ApiServer, run: str) -> list[Object]:
    """Return the pods of a run; raises as `ApiServer.get`."""
    query = [("labelSelector", f"{RUN_LABEL}={run}")]
    found = api.get(PODS.format(namespace=api.namespace), query)
    return [{"apiVersion": "v1", "kind": "Pod", **row} for row in found["items"]]


def overdue(pod: Object, now: datetime) -> bool:
    """Return whether a pod that was deleted should long be gone: its node does not answer."""
    until = fields.at(pod, "metadata", "deletionTimestamp")  # the end of its grace period
    return until is not None and now > until + OVERDUE


def npu_resource(job: Object) -> str:
    """Return the extended resource that a Job's pods ask for, such as huawei.com/Ascend910."""
    template = fields.of(job, "spec", "template") or {}
    limits = fields.of(fields.container(template), "resources", "limits") or {}
    return next((name for name in limits if "/" in name), "")


def _made(pod: Object) -> tuple[str, str]:
    return fields.text(pod, "metadata", "creationTimestamp"), fields.name(pod)


def _telling(pods: list[Object]) -> list[Object]:
    """Return the pods whose events may explain something, the newest of those that don't run."""
    silent = ("Running", "Succeeded")
    rest = sorted(
        pods, key=lambda pod: (fields.text(pod, "status", "phase") in silent, _newest_first(pod))
    )
    return rest[:TELLING_PODS]


def _newest_first(pod: Object) -> float:
    made = fields.at(pod, "metadata", "creationTimestamp")
    return -made.timestamp() if made else 0.0


def _events(api: ApiServer, found: Object) -> list[Object]:
    """Return the events of one object, by its UID: a name may have been another object's."""
    query = [("fieldSelector", f"involvedObject.uid={fields.uid(found)}")]
    return list(api.get(EVENTS.format(namespace=api.namespace), query)["items"])


def _sorted(told: list[Future[list[Object]]]) -> tuple[Object, ...]:
    return tuple(sorted((row for future in told for row in future.result()), key=fields.when))


def _workload(api: ApiServer, job: Object) -> tuple[Object | None, bool]:
    """Return what stands for the Job in a queue of Kueue, and whether there is no Kueue at all.

    Raises:
        As `ApiServer.get`.
    """
    if not fields.of(job, "metadata", "labels", "kueue.x-k8s.io/queue-name"):
        return None, False
    query = [("labelSelector", f"kueue.x-k8s.io/job-uid={fields.uid(job)}")]
    exception = api_exception()
    for path in WORKLOADS:
        try:
            found = api.get(path.format(namespace=api.namespace), query)
        except exception as error:
            if error.status == 403:  # not this user's to read
                return None, False
            if error.status != 404:
                raise
        else:
            return next(iter(fields.rows(found, "items")), None), False
    return None, True


def _waiting(api: ApiServer, job: Object) -> tuple[Object, ...]:
    """Return the Workloads that no queue of the namespace has let in; () if there are too many.

    Only for a Job that waits itself. Kueue lets one select by what a Workload was let into.
    """
    queued = fields.of(job, "metadata", "labels", "kueue.x-k8s.io/queue-name")
    if not queued or fields.of(job, "spec", "suspend") is not True:
        return ()
    query = [("fieldSelector", "status.admission.clusterQueue="), ("limit", str(MOST_WAITING))]
    exception = api_exception()
    try:
        found = api.get(WORKLOADS[0].format(namespace=api.namespace), query)
    except exception:  # an older Kueue, or not this user's to list
        return ()
    return () if fields.text(found, "metadata", "continue") else tuple(fields.rows(found, "items"))


def _pod_group(api: ApiServer, job: Object) -> Object | None:
    """Return the PodGroup that Volcano makes for a Job of its own; raises as `ApiServer.get`."""
    if fields.text(job, "spec", "template", "spec", "schedulerName") != "volcano":
        return None
    query = [("fieldSelector", f"metadata.name=podgroup-{fields.uid(job)}")]
    found = api.get(POD_GROUPS.format(namespace=api.namespace), query)
    return next(iter(fields.rows(found, "items")), None)


def _allowed(ask: Callable[[], Object | None]) -> Object | None:
    """Return the answer, or None: not this user's to read, not there (yet), no such engine."""
    exception = api_exception()
    try:
        return ask()
    except exception as error:
        if error.status not in (403, 404):
            raise
        return None


def _asks_nodes(pods: list[Object], now: datetime) -> bool:
    """Return whether facts of nodes could explain anything: a pod without one, or a lost one."""
    return any(
        not fields.of(pod, "spec", "nodeName") or overdue(pod, now) or _unready(pod)
        for pod in pods
        if fields.text(pod, "status", "phase") not in ("Succeeded", "Failed")
    )


def _unready(pod: Object) -> bool:
    """Return whether a pod runs and is not ready: who says so is the controller of lost nodes."""
    running = fields.text(pod, "status", "phase") == "Running"
    return running and fields.condition(pod, "Ready", "False") is not None


def _nodes(api: ApiServer, job: Object) -> tuple[Node, ...] | None:
    return nodefacts.nodes(api, npu_resource(job))
