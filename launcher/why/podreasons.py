"""Owns why a pod that has a node does not run there: image, volumes, Secrets, node. Pure.

Must not judge pods that no node takes (scheduling.py) nor ended ones (endings.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta

from launcher import fields, output
from launcher.fields import Object
from launcher.nodes import Node
from launcher.why import imagepull
from launcher.why.reasons import Reason

LATE = timedelta(seconds=30)
"""A pod that is still there so long after its grace has nobody who ends it."""
GIVEN_UP = timedelta(minutes=5)
"""How long a node may be silent before its pods are: the tolerationSeconds that servers add."""
_MOUNT = re.compile(r'SetUp failed for volume "([^"]+)" ?: (.*)')
_HOST_PATH = re.compile(r"hostPath type check failed: (\S+) is not an? (.*)")
_MISSING = re.compile(r'(secret|configmap) "([^"]+)" not found', re.IGNORECASE)
_KEY = re.compile(r"couldn't find key (\S+) in (Secret|ConfigMap) \S+/(\S+)")
_ROOT = re.compile(r"runAsNonRoot|run as root")
_OF_DRIVER = (
    "/usr/local/Ascend",
    "/usr/local/dcmi",
    "/usr/local/bin/npu-smi",
    "/etc/ascend",
    "/etc/hccn",
)


def blocked(pod: Object, events: Iterable[Object]) -> Reason | None:
    """Return what keeps a placed pod from running; None if it is on its way."""
    node = fields.text(pod, "spec", "nodeName")
    mine = fields.about(events, pod)
    for status in fields.statuses(pod):
        waiting = fields.of(status, "state", "waiting")
        if not waiting:
            continue
        reason = fields.text(waiting, "reason")
        image = fields.text(status, "image") or _image(pod, fields.text(status, "name"))
        message = _told(waiting, mine)
        if found := imagepull.meaning(image, node, reason, message):
            return found
        if found := _not_made(reason, message, pod):
            return found
    return _volume(mine, pod, node) or _sandbox(mine, node)


def starting(pod: Object, events: Iterable[Object], now: datetime) -> Reason:
    """Return what a placed pod that is not blocked is doing before it runs."""
    node, mine = fields.text(pod, "spec", "nodeName"), fields.about(events, pod)
    pulls = [row for row in mine if row.get("reason") in ("Pulling", "Pulled")]
    if pulls and pulls[-1].get("reason") == "Pulling":
        since = output.duration((now - fields.when(pulls[-1])).total_seconds())
        image = fields.text(fields.container(pod), "image")
        return Reason(word="pulling", line=f"{node} has been pulling {image} for {since}")
    return Reason(word="starting", line=f"{node} is making its container")


def lost(
    pod: Object, events: Iterable[Object], nodes: Iterable[Node] | None, now: datetime
) -> Reason | None:
    """Return that a pod's node is away, if it is: its pod is neither ended nor replaced then."""
    name = fields.text(pod, "spec", "nodeName")
    if not name or fields.text(pod, "status", "phase") in ("Succeeded", "Failed"):
        return None
    deadline = fields.at(pod, "metadata", "deletionTimestamp")
    silent = _silent(pod, name, events, nodes)
    if deadline is None:
        return _not_given_up(pod, name, now) if silent else None
    # A node that is ready ends it: then it is the clocks that differ, here and in the cluster.
    if not silent and (nodes is not None or now < deadline + LATE):
        return None
    since = output.duration((now - deadline).total_seconds())
    what = "does not answer" if silent else f"should have ended this pod {since} ago"
    line = (
        f"node {name} {what}: the pod stays Terminating and is not replaced until the node is back"
    )
    taint = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
    step = f"if the node is off for certain: kubectl taint node {name} {taint}"
    return Reason(word="node-lost", line=f"{line} or is given up", next_step=step, stuck=True)


def _silent(pod: Object, name: str, events: Iterable[Object], nodes: Iterable[Node] | None) -> bool:
    """Return whether a node is known not to answer."""
    if nodes is not None:
        known = [node for node in nodes if node.name == name]
        return not known or not known[0].ready
    told = fields.about(events, pod, "NodeNotReady")
    ready = fields.condition(pod, "Ready", "False")
    # The node controller says so once and turns the pod's Ready to False; a node that is back
    # turns it again.
    return bool(told and ready)


def _not_given_up(pod: Object, name: str, now: datetime) -> Reason:
    since = fields.at(fields.condition(pod, "Ready", "False"), "lastTransitionTime")
    left, told = "within " + output.duration(_patience(pod).total_seconds()), ""
    if since is not None:
        told = f" for {output.duration((now - since).total_seconds())}"
        seconds = (since + _patience(pod) - now).total_seconds()
        left = f"in about {output.duration(seconds)}"
    line = f"node {name} has not answered{told}; if it stays away the pod is given up {left}"
    return Reason(word="node-silent", line=line, next_step=f"wait, or have {name} looked at")


def _patience(pod: Object) -> timedelta:
    """Return how long a pod is left on a node that does not answer."""
    for row in fields.rows(pod, "spec", "tolerations"):
        if row.get("key") == "node.kubernetes.io/unreachable" and row.get("effect") == "NoExecute":
            return timedelta(seconds=fields.number(row, "tolerationSeconds") or 0)
    return GIVEN_UP


def _image(pod: Object, container: str) -> str:
    for row in fields.rows(pod, "spec", "containers") + fields.rows(pod, "spec", "initContainers"):
        if row.get("name") == container:
            return fields.text(row, "image")
    return ""


def _told(waiting: Object, events: Iterable[Object]) -> str:
    """Return the kubelet's message; an older one says why only in the event before."""
    message = fields.text(waiting, "message")
    if ": " in message and not re.fullmatch(r'Back-off pulling image "[^"]*"', message):
        return message
    failed = [fields.text(row, "message") for row in events if row.get("reason") == "Failed"]
    causes = [text for text in failed if text.startswith("Failed to pull image")]
    return causes[-1] if causes else message


def _not_made(reason: str, message: str, pod: Object) -> Reason | None:
    """Return why a container could not be made or started."""
    if reason == "CreateContainerConfigError":
        if found := _MISSING.search(message):
            return _absent(found[1].lower(), found[2], pod)
        if found := _KEY.search(message):
            line = f"{found[2]} {found[3]} has no key {found[1]}"
            step = f"add the key: {fields.kubectl(pod)} edit {found[2].lower()} {found[3]}"
            return Reason(word="config", line=line, next_step=step, stuck=True)
        step = "see the base manifest"
        if _ROOT.search(message):
            step = "the image has to run as another user than root: the shipped Dockerfile does"
        return Reason(
            word="config",
            line=f"its container cannot be made: {message}",
            next_step=step,
            stuck=True,
        )
    if reason in ("CreateContainerError", "RunContainerError", "CrashLoopBackOff", "StartError"):
        node = fields.text(pod, "spec", "nodeName")
        line = f"{node} cannot start its container: {message or reason}"
        step = "is --image an image of the jobs, for this node's architecture?"
        return Reason(word="container", line=line, next_step=step, stuck=True)
    return None


def _absent(kind: str, name: str, pod: Object) -> Reason:
    title = "Secret" if kind == "secret" else "ConfigMap"
    line = f"{title} {name} does not exist in this namespace"
    step = f"create it, and the pod starts by itself: {fields.kubectl(pod)} create {kind} "
    step += (
        f"generic {name} --from-env-file=FILE"
        if kind == "secret"
        else f"{name} --from-env-file=FILE"
    )
    return Reason(word=kind, line=line, next_step=step, stuck=True)


def _volume(events: Iterable[Object], pod: Object, node: str) -> Reason | None:
    found = [row for row in events if row.get("reason") in ("FailedMount", "FailedAttachVolume")]
    if not found:
        return None
    message = fields.text(found[-1], "message")
    for row in reversed(
        found
    ):  # `timed out waiting for the condition` says less than what it waits for
        if _MOUNT.search(fields.text(row, "message")):
            message = fields.text(row, "message")
            break
    mount = _MOUNT.search(message)
    if mount and (path := _HOST_PATH.search(mount[2])):
        line = f"node {node} has no {path[2].strip()} {path[1]} (volume {mount[1]})"
        step = f"kubectl describe node {node}; or take the volume out of the base"
        if path[1].startswith(_OF_DRIVER):
            line += ": the Ascend driver is not installed there"
            step = f"install the driver, or keep runs away: kubectl cordon {node}"
            step += "; where Ascend Docker Runtime mounts it, the base needs no such volumes"
        return Reason(word="volume", line=line, next_step=step, stuck=True)
    if absent := _MISSING.search(message):
        return _absent(absent[1].lower(), absent[2], pod)
    what = f"volume {mount[1]}: {mount[2]}" if mount else message
    return Reason(
        word="volume",
        line=f"node {node} cannot mount {what}",
        next_step="see volumes in the base",
        stuck=True,
    )


def _sandbox(events: Iterable[Object], node: str) -> Reason | None:
    found = [row for row in events if row.get("reason") == "FailedCreatePodSandBox"]
    if not found:
        return None
    message = fields.text(found[-1], "message")
    if runtime := re.search(r'no runtime for "([^"]+)" is configured', message):
        line = f"node {node} has no runtime {runtime[1]}, which runtimeClassName asks for"
        return Reason(
            word="runtime",
            line=line,
            next_step="ask the administrator, or edit the base",
            stuck=True,
        )
    line = f"node {node} cannot make the pod's sandbox: {message.rpartition('desc = ')[2]}"
    step = "as a rule the node's network plugin: ask the administrator"
    return Reason(word="sandbox", line=line, next_step=step)
