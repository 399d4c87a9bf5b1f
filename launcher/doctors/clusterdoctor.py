"""Owns what doctor makes of a cluster: facts -> lines, each ok, warn or fail with its fix. Pure.

Must not fetch (backends/clusterfacts.py) nor print (doctor.py). Nodes and image are
nodedoctor.py's; the objects that runs name, objectdoctor.py's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.backends.trials import OLDEST
from launcher.doctors import nodedoctor, objectdoctor
from launcher.doctors.findings import APPLY, Facts, Line, Object, Wanted, failed
from launcher.doctors.rights import Right
from launcher.errors import Forbidden, LauncherError, Unreachable

_LEVEL = "pod-security.kubernetes.io/enforce"
_SHOWN = 3


def version_of(found: Object) -> tuple[int, int]:
    """Return the server's version; a minor one may be `33+`.

    Raises:
        KeyError, ValueError, TypeError: it is none.
    """
    major, minor = (int(re.sub(r"\D", "", found[part])) for part in ("major", "minor"))
    return major, minor


def first_lines(facts: Facts) -> Iterator[Line]:
    """Yield what comes first: whether the right server answers, and whom."""
    user = f", as {facts.user.value}" if facts.user.value else ""
    yield Line("context", "ok", f"{facts.context}: namespace {facts.namespace}{user}")
    if facts.down is not None:
        yield failed("server", facts.down)
        return
    told = f"{facts.host}: Kubernetes {facts.version.get('gitVersion')}"
    oldest = ".".join(map(str, OLDEST))
    try:
        version = version_of(facts.version)
    except (KeyError, ValueError, TypeError):
        yield Line("server", "fail", f"{facts.host}: is no Kubernetes API server", "", Unreachable)
        return
    if version < OLDEST:
        text = f"{told}, which ignores podFailurePolicy: runs would be retried for ever"
        yield Line("server", "fail", text, f"a cluster of {oldest} or newer is needed")
        return
    yield Line("server", "ok", told)


def namespace(facts: Facts, wanted: Wanted) -> Line:
    """Return whether the namespace is there and lets the Jobs' pods in."""
    name, found = facts.namespace, facts.place
    if found.gap:
        return Line("namespace", "warn", found.gap, "doctor needs `get` on this namespace to tell")
    if found.value is None:
        return Line("namespace", "fail", f"{name}: does not exist", f"{APPLY}, or choose it by -n")
    if found.value.get("status", {}).get("phase") == "Terminating":
        return Line("namespace", "fail", f"{name}: is being deleted", "wait, or choose it by -n")
    level = found.value["metadata"].get("labels", {}).get(_LEVEL, "")
    mounts = any("hostPath" in volume for volume in wanted.pod.get("volumes") or ())
    if level in ("baseline", "restricted") and mounts:
        text = f"{name}: Pod Security {level} refuses the driver's files (hostPath) of the Jobs"
        fix = f"{APPLY}; or take the mounts out (k8s/overlays/restricted/without-driver.yaml)"
        return Line("namespace", "fail", text, fix)
    return Line("namespace", "ok", f"{name}: Pod Security {level or 'is the cluster default'}")


def rights(facts: Facts) -> Line:
    """Return whether this user may do what the launcher's verbs do."""
    lacking = [right for right, answer in facts.rights.items() if answer.value is False]
    gaps = [answer.gap for answer in facts.rights.values() if answer.gap]
    who = facts.user.value or "this user"
    needed = [right for right in lacking if not (right.for_doctor or right.everywhere)]
    if needed:
        fix = f"{APPLY} and binds Role launcher to {who}"
        return Line("rights", "fail", f"{who} may not {_listed(needed)}", fix, Forbidden)
    if gaps:
        return Line("rights", "warn", gaps[0])
    if lacking:
        fix = "the Role launcher of k8s/base"
        if any(right.everywhere for right in lacking):
            fix = "k8s/components/node-facts grants it, for all of the cluster"
        return Line("rights", "warn", f"{who} may not {_listed(lacking)}", fix)
    return Line("rights", "ok", f"all {len(facts.rights)} that the launcher uses")


def _listed(rights: list[Right]) -> str:
    shown = [f"{row} ({row.purpose})" if row.purpose else str(row) for row in rights[:_SHOWN]]
    more = len(rights) - len(shown)
    return "; ".join([*shown, f"and {more} more"] if more else shown)


def policy(facts: Facts) -> Line:
    """Return what keeps pods from mounting the host's files."""
    found = facts.intruder
    if found.gap:
        return Line("policy", "warn", found.gap)
    if found.value is None:
        text = "a pod may mount any path of the host: no admission policy is in force"
        return Line("policy", "warn", text, APPLY)
    if "PodSecurity" in found.value:
        return Line("policy", "ok", "Pod Security refuses every mount of the host's files")
    if "hostPath" in found.value:
        return Line("policy", "ok", "pods mount no file of the host but the driver's")
    # Refused for another reason, which the trial tells.
    return Line("policy", "warn", "not known: pods are refused here for another reason")


def trial(facts: Facts) -> Line:
    """Return whether the server would take a Job and its pod."""
    if facts.trial == "":
        return Line("trial", "ok", "the server would take a Job and its pod (dry run)")
    if isinstance(facts.trial, str):
        fix = f"kubectl describe quota -n {facts.namespace}"
        return Line("trial", "warn", f"a run has to wait: {facts.trial}", fix)
    if facts.place.value is None and not facts.place.gap:
        return Line("trial", "warn", "not tried: there is no namespace")
    return failed("trial", facts.trial)


def without_cluster(error: LauncherError, wanted: Wanted) -> list[Line]:
    """Return the lines where no cluster can even be asked: the kubeconfig is missing or wrong."""
    return [failed("context", error), *_unasked(), *nodedoctor.settings_lines(wanted)]


def _unasked() -> list[Line]:
    names = ("namespace", "rights", "nodes", "secrets", "account", "trial")
    return [Line(name, "warn", "not looked at: no cluster answers") for name in names]


def lines(facts: Facts, wanted: Wanted) -> list[Line]:
    """Return all lines in the order in which a person mends things; the store's come later."""
    found = list(first_lines(facts))
    if facts.down is not None:
        return [*found, *_unasked(), *nodedoctor.settings_lines(wanted)]
    return [
        *found,
        namespace(facts, wanted),
        rights(facts),
        *nodedoctor.settings_lines(wanted),
        *nodedoctor.node_lines(facts.nodes, wanted),
        *objectdoctor.lines(facts, wanted),
        policy(facts),
        trial(facts),
    ]
