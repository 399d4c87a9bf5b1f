"""Owns why the API server refuses a Job's pods: quota, limits, admission. Pure; reads messages.

Must not judge pods that exist.
"""

from __future__ import annotations

import re

from launcher.nodes import amount
from launcher.why import scheduling
from launcher.why.reasons import Reason

_FORBIDDEN = re.compile(r'^(?:Error creating: )?(?:pods|Pod) "[^"]*" is forbidden: (.*)$')
_QUOTA = re.compile(r"exceeded quota: (\S+), requested: (\S+), used: (\S+), limited: (\S+)")
_MUST = re.compile(r"failed quota: (\S+): must specify (.*)")
_LIMIT = re.compile(
    r"(maximum|minimum) (\S+) usage per (Container|Pod) is (\S+),"
    r" but (?:limit|request) is (\S+?)[,.\]]*(?: |$)"
)
_LIMIT_BARE = re.compile(r"(maximum|minimum) \S+ usage per (?:Container|Pod) is \S+.*")
# A LimitRange gives a container that names no limit its own; what is asked for may be more.
_GIVEN = re.compile(
    r'Invalid value: "?(?P<asked>[^":]+)"?: must be less than or equal to (?P<resource>\S+) limit'
    r" of (?P<most>[^\s,]+)"
)
_SECURITY = re.compile(r'violates PodSecurity "([^"]+)": (.*)')
_POLICY = re.compile(
    r"ValidatingAdmissionPolicy '([^']+)' with binding '[^']+' denied request: (.*)"
)
_WEBHOOK = re.compile(r'admission webhook "([^"]+)" denied the request:? ?(.*)')
_ACCOUNT = re.compile(r'serviceaccount "([^"]+)" not found')
_CLASS = re.compile(r"no PriorityClass with name (\S+) was found")
_RUNTIME = re.compile(r'RuntimeClass "([^"]+)" not found')


def meaning(message: str, namespace: str) -> Reason:
    """Return why a pod could not be created.

    Args:
        message: of a FailedCreate event, or the server's answer to a pod.
        namespace: where.
    """
    found = _FORBIDDEN.search(message)
    text = found[1] if found else message.removeprefix("Error creating: ")
    for pattern, reason in (
        (_QUOTA, _quota),
        (_LIMIT, _limit),
        (_GIVEN, _given),
        (_MUST, _must),
        (_SECURITY, _security),
        (_POLICY, _policy),
        (_WEBHOOK, _webhook),
        (_ACCOUNT, _account),
        (_CLASS, _priority),
        (_RUNTIME, _runtime),
    ):
        if match := pattern.search(text):
            return reason(match, namespace)
    if match := _LIMIT_BARE.search(text):
        return _stuck(
            "limits",
            f"a LimitRange of the namespace: {match[0]}",
            _RANGE.format(namespace, "another size"),
        )
    return _stuck(
        "refused", f"its pods are refused: {text}", "see the base, or ask the administrator"
    )


_RANGE = "kubectl describe limitrange -n {}; ask the administrator, or set {} in launcher.toml"
_KEYS = {"memory": "memory_per_npu_gib", "cpu": "cpu_per_npu"}
"""Which setting decides how much of a resource a pod asks for."""
WRONG = ("limits", "must", "account", "priority", "runtime")
"""Words of the refusals that another setting mends; the others are somebody's rule."""


def _stuck(word: str, line: str, step: str) -> Reason:
    return Reason(word=word, line=line, next_step=step, stuck=True)


def _quota(found: re.Match[str], namespace: str) -> Reason:
    """Tell the first resource that is over; what is more than all the quota never fits."""
    name = found[1]
    asked, used, limited = (_amounts(found[group]) for group in (2, 3, 4))
    step = f"kubectl describe quota {name} -n {namespace}"
    for key in asked:
        resource = key.removeprefix("requests.").removeprefix("limits.")
        want, taken, limit = (amount(resource, row.get(key, "0")) for row in (asked, used, limited))
        if want + taken <= limit:
            continue
        line = f"quota {name}: asks {scheduling.shown(resource, want)}, and"
        if want > limit:
            line = f"can never fit: {line} the namespace has {limited[key]} in all"
            return _stuck("quota", line, f"ask for less, or for more quota: {step}")
        line += f" {used[key]} of {limited[key]} are used; it fits when other runs here end"
        return Reason(word="quota", line=line, next_step=f"wait; {step}")
    return Reason(word="quota", line=f"quota {name} is used up", next_step=f"wait; {step}")


def _amounts(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(","))
    return {key: value for key, _, value in pairs}


def _must(found: re.Match[str], namespace: str) -> Reason:
    line = f"quota {found[1]}: its pods have to say how much they need of {found[2]}"
    return _stuck(
        "must",
        line,
        f"add it to resources in the base; kubectl describe quota {found[1]} -n {namespace}",
    )


def _limit(found: re.Match[str], namespace: str) -> Reason:
    bound, resource, of, allowed, asked = found.groups()
    most = "at most" if bound == "maximum" else "at least"
    line = f"a LimitRange of the namespace: a {of.lower()} may ask {most}"
    return _stuck(
        "limits",
        f"{line} {allowed} of {resource}, and this one asks {asked}",
        _RANGE.format(namespace, _KEYS.get(resource, "another size")),
    )


def _given(found: re.Match[str], namespace: str) -> Reason:
    resource = found["resource"]
    line = f"a LimitRange of the namespace: a container may ask at most {found['most']} of"
    return _stuck(
        "limits",
        f"{line} {resource}, and this one asks {found['asked']}",
        _RANGE.format(namespace, _KEYS.get(resource, "another size")),
    )


def _security(found: re.Match[str], namespace: str) -> Reason:
    line = f"Pod Security {found[1]} of the namespace refuses its pods: {found[2]}"
    step = f"driver mounts need enforce=privileged: kubectl label ns {namespace} --overwrite"
    return _stuck(
        "admission",
        line,
        f"{step} pod-security.kubernetes.io/enforce=privileged; or k8s/overlays/restricted",
    )


def _policy(found: re.Match[str], _: str) -> Reason:
    line = f"admission policy {found[1]} refuses its pods: {found[2]}"
    return _stuck(
        "admission", line, "see the base's volumes and security, or ask the administrator"
    )


def _webhook(found: re.Match[str], _: str) -> Reason:
    line = f"admission webhook {found[1]} refuses its pods: {found[2] or 'it does not say why'}"
    return _stuck("admission", line, "ask the administrator of that webhook")


def _account(found: re.Match[str], namespace: str) -> Reason:
    line = f"service account {found[1]} does not exist"
    return _stuck(
        "account",
        line,
        f"kubectl create serviceaccount {found[1]} -n {namespace}, or set another service_account",
    )


def _priority(found: re.Match[str], _: str) -> Reason:
    return _stuck(
        "priority",
        f"priority class {found[1]} does not exist",
        "--priority NAME, or priority_class in launcher.toml; kubectl get priorityclass lists them",
    )


def _runtime(found: re.Match[str], _: str) -> Reason:
    return _stuck(
        "runtime",
        f"runtime class {found[1]} does not exist",
        "kubectl get runtimeclass shows which do",
    )
