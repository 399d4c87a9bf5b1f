"""Owns the way from a JobPlan to a Kubernetes Job: a base, patched as data. Pure but for `base`.

Must not decide anything (plan.py) nor send anything (backends/kubernetes.py). Whatever is not
listed in OWNED belongs to whoever edits the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher import devices
from launcher.errors import Misconfigured
from launcher.plan import JobPlan

Manifest = dict[str, Any]
FieldPath = tuple[str, ...]
"""Keys from the root; an item of a list is addressed by its `name`."""

HCCN = "hccn-conf"
"""The volume of a node's file beside the driver's, for training over several nodes."""
CONTAINER = "main"
"""The container that runs the supervisor; podFailurePolicy names it too."""
_POD: FieldPath = ("spec", "template", "spec")
_MAIN: FieldPath = (*_POD, "containers", CONTAINER)
OWNED: tuple[FieldPath, ...] = (
    ("metadata", "name"),
    ("metadata", "namespace"),
    ("metadata", "labels"),
    ("metadata", "annotations"),
    ("spec", "completions"),
    ("spec", "parallelism"),
    ("spec", "suspend"),
    ("spec", "backoffLimitPerIndex"),
    ("spec", "activeDeadlineSeconds"),
    ("spec", "ttlSecondsAfterFinished"),
    ("spec", "template", "metadata", "labels"),
    ("spec", "template", "metadata", "annotations"),
    (*_POD, "subdomain"),
    (*_POD, "terminationGracePeriodSeconds"),
    (*_POD, "nodeSelector"),
    (*_POD, "affinity", "podAntiAffinity", "preferredDuringSchedulingIgnoredDuringExecution"),
    (*_POD, "schedulerName"),
    (*_POD, "serviceAccountName"),
    (*_POD, "priorityClassName"),
    (*_POD, "imagePullSecrets"),
    (*_POD, "volumes", "shm", "emptyDir", "sizeLimit"),
    (*_POD, "volumes", HCCN),
    (*_MAIN, "image"),
    (*_MAIN, "env"),
    (*_MAIN, "envFrom"),
    (*_MAIN, "resources", "requests"),
    (*_MAIN, "resources", "limits"),
    (*_MAIN, "volumeMounts", HCCN),
)
"""All that `render` may touch. Mappings and lists are merged into: foreign entries stay."""


def base(kind: str) -> Manifest:
    """Return the complete Job of `kind` that ships: `train` or `infer`.

    Raises:
        Misconfigured: the file was edited into something that is not a YAML mapping.
    """
    import yaml

    package = Path(__file__).parent
    packaged = package / "bases" / f"{kind}.yaml"  # in a wheel
    path = packaged if packaged.is_file() else package.parent / "k8s" / "jobs" / f"{kind}.yaml"
    # libyaml's parser is ten times as fast; both read the same document.
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        document = yaml.load(path.read_text("utf-8"), Loader=loader)  # noqa: S506  # a safe loader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise Misconfigured(f"{path}: is not a Job", "the file holds one YAML mapping")
    return document


def render(plan: JobPlan, base: Manifest) -> Manifest:
    """Return `base` with the fields of OWNED set to what the plan says; `base` stays as it is.

    Raises:
        Misconfigured: the base lacks a thing that the plan has to set.
    """
    manifest: Manifest = _copy(base)
    for path, value in zip(OWNED, _values(plan, _mounts_driver(base)), strict=True):
        if value not in ("", {}, [], None):  # what the plan leaves open, the base decides
            _put(manifest, path, value)
    return manifest


def literal(value: str) -> str:
    """Return an environment value that the kubelet hands on as `value`.

    It expands `$(NAME)` and turns `$$` into `$` (Kubernetes API reference, EnvVar.value).
    """
    return value.replace("$", "$$")


def _values(plan: JobPlan, driver: bool) -> tuple[Any, ...]:
    """Return the value of each path of OWNED, in its order; None within a mapping removes a key.

    Args:
        plan: what was decided.
        driver: whether the base mounts the node's driver, as it must where no runtime does.
    """
    memory = f"{plan.memory_gib}Gi"
    foreign = dict.fromkeys(devices.resources())
    npus = foreign | {plan.resource: str(plan.npus)}
    requests = {"cpu": str(plan.cpu), "memory": memory, "ephemeral-storage": f"{plan.disk_gib}Gi"}
    environment = [{"name": key, "value": literal(v)} for key, v in plan.environment.items()]
    secrets = [{"secretRef": {"name": name}} for name in plan.environment_secrets]
    volume, mount = _node_file(plan) if driver else (None, None)
    return (
        plan.name,
        plan.namespace,
        {**plan.labels, **plan.job_labels},
        {**plan.annotations, **plan.job_annotations},
        plan.nodes,
        plan.nodes,
        plan.suspended or None,
        plan.retries,
        plan.deadline_seconds or None,
        plan.ttl_seconds,
        plan.labels,
        {**plan.annotations, **plan.pod_annotations},
        plan.subdomain,
        plan.grace_seconds,
        dict.fromkeys(sorted(devices.node_labels())) | dict(plan.node_selector),
        _apart(plan),
        plan.scheduler,
        plan.service_account,
        plan.priority_class,
        [{"name": name} for name in plan.image_pull_secrets],
        f"{plan.shm_gib}Gi",
        volume,
        plan.image,
        environment,
        secrets,
        requests | npus,
        {"memory": memory, "ephemeral-storage": f"{plan.most_disk_gib}Gi"} | npus,
        mount,
    )


def _apart(plan: JobPlan) -> list[dict[str, Any]]:
    """Return the wish that no two pods of the run share a node; a wish, so that none waits for it.

    Pods that take whole nodes are apart anyway; the others would be two on a node, and `--nodes`
    not be what it says.
    """
    if plan.nodes == 1:
        return []
    selector = {"matchLabels": {"batch.kubernetes.io/job-name": plan.name}}
    term = {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}
    return [{"weight": 100, "podAffinityTerm": term}]


def _mounts_driver(base: Manifest) -> bool:
    """Return whether the base mounts anything of the node; `restricted` namespaces refuse that."""
    here: Any = base
    for key in (*_POD, "volumes"):
        here = here.get(key) if isinstance(here, dict) else None
    return any("hostPath" in row for row in here or () if isinstance(row, dict))


def _node_file(plan: JobPlan) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return volume and mount of the file that HCCL reads, where the plan has one."""
    if not plan.node_file:
        return None, None
    host = {"path": plan.node_file, "type": "File"}
    mount = {"name": HCCN, "mountPath": plan.node_file, "readOnly": True}
    return {"name": HCCN, "hostPath": host}, mount


def _copy(value: Any) -> Any:
    """Return a copy that shares nothing, not even what a YAML anchor made one object."""
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def _put(manifest: Manifest, path: FieldPath, value: Any) -> None:
    """Set or merge `value` at `path`; mappings on the way are made, named items must be there."""
    here: Any = manifest
    for depth, key in enumerate(path[:-1], start=1):
        if isinstance(here, list):
            here = _named(here, key, path[:depth])
        else:
            here[key] = {} if here.get(key) is None else here[key]
            here = here[key]
        if not isinstance(here, dict | list):
            raise Misconfigured(f"base manifest: {'.'.join(path[:depth])}: is not a mapping")
    last = path[-1]
    if isinstance(here, list):  # an item of the base with that name is replaced
        here[:] = _merged_list(here, [value])
    elif isinstance(value, Mapping):
        here[last] = _merged_mapping(here.get(last) or {}, value)
    elif isinstance(value, list):
        here[last] = _merged_list(here.get(last) or [], value)
    else:
        here[last] = value


def _named(items: Sequence[Any], name: str, path: FieldPath) -> Any:
    for item in items:
        if isinstance(item, dict) and item.get("name") == name:
            return item
    raise Misconfigured(
        f"base manifest: {'.'.join(path[:-1])}: has no item named {name!r}",
        "the bases that ship show where it stands",
    )


def _merged_mapping(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return old with the entries of new; None removes one."""
    return {key: value for key, value in {**old, **new}.items() if value is not None}


def _merged_list(old: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    """Return old, each item replaced by the new one of its name, and the other new ones."""
    merged = list(old)
    places = {item["name"]: at for at, item in enumerate(old) if "name" in item}
    for item in new:
        at = places.get(item.get("name"))
        if at is not None:
            merged[at] = item
        elif item not in merged:
            merged.append(item)
    return merged
