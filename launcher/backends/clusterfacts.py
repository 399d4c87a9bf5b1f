"""Owns what doctor asks a cluster: many small questions at once, each answered, refused or not.

Must not judge the answers (clusterdoctor.py) nor change anything: what is tried is a dry run.
"""

from __future__ import annotations

import base64
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from launcher import queues
from launcher.backends import nodefacts
from launcher.backends.apiserver import ApiServer, api_exception, message_of, translated
from launcher.backends.kubernetes import Kubernetes
from launcher.doctors import objectdoctor, rights
from launcher.doctors.findings import Answer, Facts, Keys, Object, Wanted
from launcher.doctors.rights import Right
from launcher.errors import LauncherError
from launcher.nodes import Node
from launcher.settings import KUEUE, VOLCANO
from launcher.why import scheduling

T = TypeVar("T")
PARALLEL = 8
PEERS = "peers"
"""The Service of k8s/base."""
INTRUDER = {"name": "doctor", "hostPath": {"path": "/etc"}}
"""A mount that no run needs, and that a policy is there to refuse."""


def facts(cluster: Kubernetes, wanted: Wanted) -> Facts:
    """Return what the cluster says; what this user may not know is a gap in it."""
    api = cluster.api
    known: dict[str, Any] = {
        "host": api.host, "context": api.context, "namespace": api.namespace,
    }  # fmt: skip
    try:
        with translated(api.host, ""):
            known["version"] = api.get("/version")
    except LauncherError as error:
        return Facts(**known, down=error)
    # Nodes and pods of a large cluster take the most time: begun first, in a thread of their own.
    with _uncollected(), ThreadPoolExecutor(PARALLEL) as pool:
        jobs = {name: pool.submit(ask) for name, ask in _questions(cluster, wanted).items()}
        allowed = pool.map(lambda right: _may(api, right), _all_rights(wanted))
        known["rights"] = dict(zip(_all_rights(wanted), allowed, strict=True))
        names = _secret_names(wanted)
        known["secrets"] = dict(
            zip(names, pool.map(lambda name: _keys(api, name), names), strict=True)
        )
        known |= {name: job.result() for name, job in jobs.items()}
    return Facts(**known)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python from looking for cycles in what is read: there are none, and it costs as much.

    Measured: 20,000 pods as JSON are parsed in half the time.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _questions(cluster: Kubernetes, wanted: Wanted) -> dict[str, Callable[[], Any]]:
    """Return what is asked at once: field of Facts -> how."""
    api, target = cluster.api, wanted.target
    core = f"/api/v1/namespaces/{api.namespace}"
    account = wanted.pod.get("serviceAccountName") or "default"
    found: dict[str, Callable[[], Any]] = {
        "nodes": lambda: _nodes(api, wanted),
        "trial": lambda: _tried(cluster, wanted),
        "user": lambda: _user(api),
        "place": lambda: _got(api, core),
        "account": lambda: _got(api, f"{core}/serviceaccounts/{account}"),
        "peers": lambda: _got(api, f"{core}/services/{PEERS}"),
        "intruder": lambda: _intruder(api, wanted),
    }
    if name := wanted.pod.get("priorityClassName"):
        path = f"/apis/scheduling.k8s.io/v1/priorityclasses/{name}"
        found["priority"] = lambda: _got(api, path)
    if engine := objectdoctor.engine(wanted):
        group = f"/apis/{queues.API_GROUPS[engine]}"
        name = target.queue or objectdoctor.DEFAULT_QUEUE
        kind = f"namespaces/{api.namespace}/localqueues" if engine == KUEUE else "queues"
        found["engine"] = lambda: _version(api, group)
        found["queue"] = lambda: _versioned(api, group, f"{kind}/{name}")
        if engine == KUEUE and target.workload_priority:
            rest = f"workloadpriorityclasses/{target.workload_priority}"
            found["queue_priority"] = lambda: _versioned(api, group, rest)
    return found


def _answer(api: ApiServer, ask: Callable[[], T]) -> Answer[T]:
    """Return an answer whatever happens: 404 is a value, all else that goes wrong a gap."""
    try:
        with translated(api.host, ""):
            try:
                return Answer(ask())
            except api_exception() as error:
                if error.status == 404:
                    return Answer()
                if error.status == 403:
                    return Answer(gap=_shortened(message_of(error)))
                raise
    except LauncherError as error:
        return Answer(gap=error.text)


def _shortened(text: str) -> str:
    """Return what may not be done, without whom and why: `cannot get resource ...`."""
    _, found, rest = text.partition(" cannot ")
    return f"this user cannot {rest.partition(':')[0]}" if found else text


def _got(api: ApiServer, path: str) -> Answer[Object]:
    return _answer(api, lambda: api.get(path))


def _version(api: ApiServer, group: str) -> Answer[str]:
    """Return the version that the server prefers of a group of its API."""
    return _answer(api, lambda: str(api.get(group)["preferredVersion"]["version"]))


def _versioned(api: ApiServer, group: str, rest: str) -> Answer[Object]:
    version = _version(api, group)
    if version.value is None:
        return Answer(gap=version.gap)
    return _got(api, f"{group}/{version.value}/{rest}")


def _user(api: ApiServer) -> Answer[str]:
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    return _answer(api, lambda: str(api.post(path, review)["status"]["userInfo"]["username"]))


def _all_rights(wanted: Wanted) -> Iterable[Right]:
    grants: list[rights.Grant] = ["base", "node-facts"]
    engine = objectdoctor.engine(wanted)
    if engine == KUEUE:
        grants.append("kueue")
    elif engine == VOLCANO:
        grants.append("volcano")
    return dict.fromkeys(right for grant in grants for right in rights.granted(grant))


def _may(api: ApiServer, right: Right) -> Answer[bool]:
    resource, _, sub = right.resource.partition("/")
    asked = {"group": right.group, "resource": resource, "subresource": sub, "verb": right.verb}
    if not right.everywhere:
        asked["namespace"] = api.namespace
    if right.resource == "namespaces":  # a Role reaches its own alone, by name
        asked["name"] = api.namespace
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    return _answer(api, lambda: bool(api.post(path, review)["status"]["allowed"]))


def _secret_names(wanted: Wanted) -> list[str]:
    target = wanted.target
    names = (target.store_secret, target.hub_secret, target.image_pull_secret)
    return list(dict.fromkeys(name for name in names if name))


def _keys(api: ApiServer, name: str) -> Answer[Keys]:
    """Return what may be told of a Secret; its values end here."""
    path = f"/api/v1/namespaces/{api.namespace}/secrets/{name}"

    def ask() -> Keys:
        found = api.get(path)
        data: Mapping[str, str] = found.get("data") or {}
        return Keys(found.get("type", ""), {key: _flaw(value) for key, value in data.items()})

    return _answer(api, ask)


def _flaw(value: str) -> str:
    """Return what is wrong with a value that is to be an environment variable."""
    decoded = base64.b64decode(value)
    if not decoded.strip():
        return "is empty"
    # A line break that `echo` put there becomes part of the key that requests are signed with.
    return "ends with a line break" if decoded != decoded.rstrip(b"\r\n") else ""


def _nodes(api: ApiServer, wanted: Wanted) -> Answer[tuple[Node, ...]]:
    found = _answer(api, lambda: nodefacts.nodes(api, scheduling.resource(wanted.pod)))
    if found.value is None:
        return Answer(gap=found.gap or "this user may not list nodes")
    return Answer(found.value)


def _tried(cluster: Kubernetes, wanted: Wanted) -> LauncherError | str:
    """Return by what a run is refused, or why its pods would have to wait."""
    try:
        return cluster.dry_run_server(wanted.job)
    except LauncherError as error:
        return error


def _intruder(api: ApiServer, wanted: Wanted) -> Answer[str]:
    """Return by what words a pod is refused that mounts a foreign file of the host."""
    template, name = wanted.job["spec"]["template"], "doctor-"
    spec = {**template["spec"], "volumes": [*template["spec"].get("volumes", ()), INTRUDER]}
    metadata = {**template.get("metadata", {}), "generateName": name}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    path = f"/api/v1/namespaces/{api.namespace}/pods"

    def ask() -> str | None:
        try:
            api.post(path, pod, [("dryRun", "All")])
        except api_exception() as error:
            text = message_of(error)
            if error.status == 403 and "cannot create resource" not in text:
                return text
            raise
        return None

    found = _answer(api, ask)
    return Answer(found.value, found.gap)
