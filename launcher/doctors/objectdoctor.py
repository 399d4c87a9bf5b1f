"""Owns what doctor makes of the objects that a run names: queue, Secrets, account, Service. Pure.

Must not fetch (backends/clusterfacts.py) nor print (doctor.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher import fields, queues, storage
from launcher.doctors.findings import APPLY, Answer, Facts, Keys, Line, Object, Wanted
from launcher.errors import LauncherError
from launcher.settings import KUEUE

STORE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
"""What boto3 reads; the job gets every key of the Secret as a variable."""
HUB_KEYS = ("HF_TOKEN",)
PULL_KEYS = (".dockerconfigjson",)
PULL_TYPE = "kubernetes.io/dockerconfigjson"
DEFAULT_QUEUE = "default"
"""Where Volcano puts what names no queue."""


def lines(facts: Facts, wanted: Wanted) -> list[Line]:
    """Return the lines about all of them, in the order in which a person mends things."""
    return [
        *queue(facts, wanted),
        *secrets(facts, wanted),
        account(facts, wanted),
        *priority(facts, wanted),
        peers(facts),
    ]


def engine(wanted: Wanted) -> str:
    """Return whose queue runs wait in: kueue, volcano, or empty for nobody's."""
    try:
        return queues.engine(wanted.target)
    except LauncherError:  # told as a setting
        return ""


def queue(facts: Facts, wanted: Wanted) -> Iterator[Line]:
    """Yield whether the queue is there and takes runs, if there is one."""
    whose = engine(wanted)
    if not whose:
        return
    name = wanted.target.queue or DEFAULT_QUEUE
    title = f"{whose.capitalize()} {name}"
    if facts.engine.value is None and not facts.engine.gap:
        text = f"{title}: {whose.capitalize()} is not installed, and a run would wait for ever"
        yield Line("queue", "fail", text, "install it, or unset queue and queue_engine")
    elif facts.queue.value is not None:
        yield _open(title, facts.queue.value, whose)
        yield from _queue_priority(facts, wanted)
    elif gap := facts.engine.gap or facts.queue.gap:
        yield Line("queue", "warn", f"{title}: {gap}", f"k8s/queues/{whose} grants it")
    else:
        text = f"{title}: no such queue, and a run would wait for ever"
        yield Line("queue", "fail", text, f"correct queue, or kubectl apply -k k8s/queues/{whose}")


def _open(title: str, found: Object, whose: str) -> Line:
    if whose == KUEUE:
        stopped = fields.text(found, "spec", "stopPolicy")
        if stopped not in ("", "None"):
            fix = "its administrator sets spec.stopPolicy: None"
            return Line("queue", "fail", f"{title}: is stopped ({stopped})", fix)
        active = fields.condition(found, "Active")
        if active is None:
            return Line("queue", "warn", f"{title}: Kueue has said nothing of it yet")
        if active.get("status") != "True":
            why = fields.text(active, "message") or fields.text(active, "reason")
            fix = "its administrator mends the ClusterQueue or its ResourceFlavor"
            return Line("queue", "fail", f"{title}: is not active: {why}", fix)
        waiting = fields.number(found, "status", "pendingWorkloads") or 0
        return Line("queue", "ok", f"{title}: is active, {waiting} waiting")
    state = fields.text(found, "status", "state")
    if state in ("Closed", "Closing"):
        fix = "its administrator opens it: vcctl queue operate -a open"
        return Line("queue", "fail", f"{title}: is {state.lower()}", fix)
    if state != "Open":
        return Line("queue", "warn", f"{title}: Volcano has said nothing of it yet")
    return Line("queue", "ok", f"{title}: is open")


def _queue_priority(facts: Facts, wanted: Wanted) -> Iterator[Line]:
    name = wanted.target.workload_priority
    if not name or engine(wanted) != KUEUE:
        return
    found = facts.queue_priority
    if found.value is not None:
        yield Line("queue", "ok", f"WorkloadPriorityClass {name}: {found.value.get('value')}")
    elif found.gap:
        yield Line("queue", "warn", f"WorkloadPriorityClass {name}: {found.gap}")
    else:
        text = f"WorkloadPriorityClass {name}: is not there, and a run would wait for ever"
        fix = "correct workload_priority; kubectl get workloadpriorityclasses lists them"
        yield Line("queue", "fail", text, fix)


def secrets(facts: Facts, wanted: Wanted) -> Iterator[Line]:
    """Yield whether the Secrets are there and have the keys that a job needs."""
    target = wanted.target
    nothing: Answer[Keys] = Answer()
    if storage.remote(target.store) and not target.store_secret:
        text = "store_secret is not set: pods must have credentials from elsewhere"
        fix = 'store_secret = "NAME" in launcher.toml, or try it: launcher doctor --pod'
        yield Line("store keys", "warn", text, fix)
    elif target.store_secret:
        found = facts.secrets.get(target.store_secret, nothing)
        keys = STORE_KEYS if storage.remote(target.store) else ()
        yield _secret("store keys", target.store_secret, found, keys, facts.namespace)
    if target.hub_secret:
        found = facts.secrets.get(target.hub_secret, nothing)
        yield _secret("hub keys", target.hub_secret, found, HUB_KEYS, facts.namespace)
    if target.image_pull_secret:
        name = target.image_pull_secret
        found = facts.secrets.get(name, nothing)
        line = _secret("pull keys", name, found, PULL_KEYS, facts.namespace)
        if line.state == "ok" and found.value and found.value.type != PULL_TYPE:
            fix = f"kubectl -n {facts.namespace} create secret docker-registry {name} ..."
            line = Line("pull keys", "fail", f"{name}: is a Secret of type {found.value.type}", fix)
        yield line


def _secret(
    title: str, name: str, found: Answer[Keys], keys: Sequence[str], namespace: str
) -> Line:
    how = f"kubectl -n {namespace} create secret generic {name} --from-env-file=FILE"
    if keys == PULL_KEYS:
        how = f"kubectl -n {namespace} create secret docker-registry {name} ..."
    if found.gap:
        return Line(title, "warn", f"{name}: {found.gap}", "launcher doctor --pod tries it")
    if found.value is None:
        return Line(title, "fail", f"Secret {name}: is not there; pods do not start", how)
    flaws = found.value.flaws
    lacking = [key for key in keys if key not in flaws]
    if lacking:
        has = ", ".join(sorted(flaws)) or "none"
        text = f"Secret {name}: lacks {', '.join(lacking)} (it has {has})"
        return Line(title, "fail", text, f"make it again: {how}")
    wrong = [f"{key} {flaws[key]}" for key in keys if flaws[key]]
    if wrong:
        text = f"Secret {name}: {', '.join(wrong)}"
        return Line(title, "fail", text, f"make it again: {how}")
    return Line(title, "ok", f"Secret {name}: has {', '.join(sorted(flaws))}")


def account(facts: Facts, wanted: Wanted) -> Line:
    """Return whether the pods' service account is there."""
    name = wanted.pod.get("serviceAccountName") or "default"
    if facts.account.value is not None:
        return Line("account", "ok", f"{name}: pods run as it")
    if not facts.account.gap:
        fix = f'{APPLY}, which makes `job`; then service_account = "job"'
        return Line("account", "fail", f"{name}: no such service account; pods are refused", fix)
    if isinstance(facts.trial, str):
        return Line("account", "ok", f"{name}: the trial's pod may run as it")
    return Line("account", "warn", facts.account.gap, "see the line `trial`")


def priority(facts: Facts, wanted: Wanted) -> Iterator[Line]:
    """Yield whether the priority class is there, if one is set."""
    name = wanted.pod.get("priorityClassName")
    if not name:
        return
    found = facts.priority
    if found.value is not None:
        yield Line("priority", "ok", f"{name}: {found.value.get('value')}")
    elif not found.gap:
        fix = "correct priority_class; kubectl get priorityclasses lists them"
        yield Line("priority", "fail", f"{name}: no such priority class; pods are refused", fix)
    elif isinstance(facts.trial, str):
        yield Line("priority", "ok", f"{name}: the trial's pod may have it")
    else:
        yield Line("priority", "warn", found.gap, "see the line `trial`")


def peers(facts: Facts) -> Line:
    """Return whether pods of a run over several nodes will find each other."""
    found = facts.peers
    if found.gap:
        return Line("service", "warn", found.gap, "runs over several nodes need Service peers")
    if found.value is None:
        return Line("service", "warn", "peers: is not there; runs with --nodes need it", APPLY)
    spec = found.value.get("spec", {})
    if spec.get("clusterIP") != "None" or not spec.get("publishNotReadyAddresses"):
        text = "peers: is not headless, or hides pods that are not ready: runs with --nodes hang"
        return Line("service", "fail", text, APPLY)
    return Line("service", "ok", "peers: gives pods of a run over several nodes their names")
