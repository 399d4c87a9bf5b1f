"""Owns what doctor makes of nodes and image: resource, labels, taints, free NPUs, size. Pure.

Must not fetch (backends/clusterfacts.py) nor print (doctor.py). Who takes which pod is
placing.py's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from launcher import devices, output
from launcher.doctors.findings import Answer, Line, Wanted, failed
from launcher.nodes import Node, requested
from launcher.why import placing, scheduling

ARCHITECTURES = {"arm64": "arm64", "aarch64": "arm64", "amd64": "amd64", "x86_64": "amd64"}
"""Words in names of images -> what a node calls it."""
_ARCHITECTURE = re.compile(rf"(?<![a-z0-9])({'|'.join(ARCHITECTURES)})(?![a-z0-9])")
_OWN_LINES = ("image", "store")
_SHOWN = 3
GRANT = "k8s/components/node-facts grants it"


def settings_lines(wanted: Wanted) -> Iterator[Line]:
    """Yield what the settings alone tell: whether they make a Job, and of which image."""
    target = wanted.target
    wrong = {key: row for key, row in wanted.problems.items() if key not in _OWN_LINES}
    for problem in wrong.values():
        yield failed("settings", problem)
    if wanted.lean is not None:
        yield Line("settings", "warn", f"{wanted.lean.text}; --model tiny fits", wanted.lean.hint)
    elif not wrong:
        text = f"server {target.server}, plugin {target.plugin}: {resource(wanted)}"
        yield Line("settings", "ok", text)
    yield image(wanted)


def image(wanted: Wanted) -> Line:
    """Return whether the image has a name that nodes can pull, and always the same."""
    if problem := wanted.problems.get("image"):
        return failed("image", problem)
    name = wanted.target.image
    last = name.rpartition("/")[2]
    registry = name.partition("/")[0] if "/" in name else ""
    if registry.partition(":")[0] == "localhost":
        text = f"{name}: no node can pull it; each must have it already"
        return Line("image", "warn", text, "push it to a registry of the cluster")
    if "." not in registry and ":" not in registry:
        text = f"{name}: is taken from Docker Hub, as every name without a registry"
        return Line(
            "image", "warn", text, "the name with its registry: registry.example.com/team/jobs:1"
        )
    if "@" not in last and (":" not in last or last.endswith(":latest")):
        text = f"{name}: names no version, and a node keeps what it has pulled once"
        return Line("image", "warn", text, "a tag of its own, or a digest")
    return Line("image", "ok", name)


def resource(wanted: Wanted) -> str:
    """Return the extended resource that the Job asks for."""
    return scheduling.resource(wanted.pod)


def node_lines(answer: Answer[tuple[Node, ...]], wanted: Wanted) -> Iterator[Line]:
    """Yield what the nodes tell of where a run can go."""
    if answer.value is None:
        yield Line("nodes", "warn", answer.gap, GRANT)
        return
    offering = [node for node in answer.value if node.allocatable.get(resource(wanted))]
    if not offering:
        yield _none(answer.value, wanted)
        return
    yield _number(offering, resource(wanted))
    fitting = [node for node in offering if placing.selects(wanted.pod, node)]
    yield _labels(offering, fitting, wanted)
    if not fitting:
        return
    open_ = [node for node in fitting if not _foreign(node, wanted)]
    yield _taints(fitting, open_, wanted)
    yield _architecture(open_ or fitting, wanted)
    if open_:
        yield _size(open_, wanted)
        yield _free(open_, wanted)


def _none(nodes: Sequence[Node], wanted: Wanted) -> Line:
    name = resource(wanted)
    others = [
        row for row in devices.resources() if any(node.allocatable.get(row) for node in nodes)
    ]
    text = f"none of {output.counted(len(nodes), 'node')} offers {name}"
    if not others:
        return Line("nodes", "fail", text, "the device plugin publishes it: is it running there?")
    plugins = [row.name for row in devices.PLUGINS.values() if others[0] == row.resource]
    fix = f'plugin = "{plugins[0]}"' if plugins else f'resource = "{others[0]}"'
    return Line(
        "nodes", "fail", f"{text}; they offer {', '.join(others)}", f"{fix} in launcher.toml"
    )


def _number(offering: Sequence[Node], name: str) -> Line:
    total = sum(node.allocatable[name] for node in offering)
    text = f"{output.counted(len(offering), 'node')} with {total} {name}"
    away = [node for node in offering if not placing.working(node)]
    if not away:
        return Line("nodes", "ok", text)
    text += f"; {len(away)} not ready or cordoned: {scheduling.named(away)}"
    fix = "kubectl describe node; kubectl uncordon opens a cordoned one"
    return Line("nodes", "fail" if len(away) == len(offering) else "warn", text, fix)


def _labels(offering: Sequence[Node], fitting: Sequence[Node], wanted: Wanted) -> Line:
    selector = wanted.pod.get("nodeSelector") or {}
    asked = ", ".join(f"{key}={value}" for key, value in selector.items()) or "no label"
    many = f"{len(fitting)} of {output.counted(len(offering), 'node')}"
    if not fitting:
        for key, value in selector.items():
            if not any(node.labels.get(key) == value for node in offering):
                return _mismatch(offering, key, value)
        return Line("labels", "fail", f"no node has {asked} together", "kubectl label node")
    for key, value in selector.items():
        bare = [node for node in offering if key not in node.labels]
        if bare:
            text = f"{asked}: {many}; without {key}: {scheduling.named(bare)}"
            return Line("labels", "warn", text, f"kubectl label node NAME {key}={value}")
    return Line("labels", "ok", f"{asked}: {many}")


def _mismatch(offering: Sequence[Node], key: str, value: str) -> Line:
    found = Counter(node.labels.get(key, "") for node in offering)
    told = [f"{row or 'none'} ({many})" for row, many in found.most_common(_SHOWN)]
    text = f"no node with NPUs has {key}={value}; they have {', '.join(told)}"
    known = [row for row in found if row in devices.SERVERS]
    if key == devices.ACCELERATOR_TYPE and known:
        return Line("labels", "fail", text, f'server = "{known[0]}" in launcher.toml')
    return Line("labels", "fail", text, f"kubectl label node NAME {key}={value}")


def _foreign(node: Node, wanted: Wanted) -> list[str]:
    """Return the taints that keep the Job away and stay; others tell that a node is not ready."""
    return [str(taint) for taint in placing.repelling(wanted.pod, node)]


def _taints(fitting: Sequence[Node], open_: Sequence[Node], wanted: Wanted) -> Line:
    if len(open_) == len(fitting):
        text = f"tolerated on all {output.counted(len(fitting), 'node')}"
        if not any(node.taints for node in fitting):
            text = "none"
        return Line("taints", "ok", text)
    found = Counter(taint for node in fitting for taint in _foreign(node, wanted))
    told = ", ".join(f"{row} ({many})" for row, many in found.most_common(_SHOWN))
    text = f"{len(fitting) - len(open_)} of {output.counted(len(fitting), 'node')} closed by {told}"
    fix = "add them to the tolerations of k8s/jobs/*.yaml, if runs belong there"
    return Line("taints", "warn" if open_ else "fail", text, fix)


def _architecture(nodes: Sequence[Node], wanted: Wanted) -> Line:
    found = Counter(node.architecture or "unknown" for node in nodes)
    told = ", ".join(f"{row} ({many})" for row, many in found.most_common())
    name = wanted.target.image
    named = _ARCHITECTURE.search(name.lower())
    one = "an image for both, or nodeSelector kubernetes.io/arch in k8s/jobs/*.yaml"
    if named is None:
        if len(found) > 1:
            text = f"nodes are {told}, and the image's name does not say what it is for"
            return Line("arch", "warn", text, one)
        return Line("arch", "ok", f"nodes are {told}: the image has to be for them")
    mine = ARCHITECTURES[named[1]]
    if mine not in found:
        text = f"the image's name says {mine}, and nodes are {told}"
        return Line("arch", "fail", text, f"an image for {found.most_common(1)[0][0]}")
    if len(found) > 1:
        return Line("arch", "warn", f"the image's name says {mine}, and nodes are {told}", one)
    return Line("arch", "ok", f"{mine}, as the image's name says")


def _size(nodes: Sequence[Node], wanted: Wanted) -> Line:
    """Return whether some node, were it empty, holds the smallest run and a whole server's."""
    for spec in (wanted.pod, wanted.room):
        asked = requested(spec)
        lacking = [
            _lacking(name, asked[name], nodes)
            for name in asked
            if not any(node.allocatable.get(name, 0) >= asked[name] for node in nodes)
        ]
        if lacking:
            many = scheduling.shown(resource(wanted), asked[resource(wanted)])
            text = f"a pod of {many} asks for {'; '.join(lacking)}"
            fix = "cpu_per_npu, memory_per_npu_gib or server in launcher.toml"
            return Line("size", "fail" if spec is wanted.pod else "warn", text, fix)
    whole = scheduling.shown(resource(wanted), requested(wanted.room)[resource(wanted)])
    return Line("size", "ok", f"a pod of {whole} fits on an empty node")


def _lacking(name: str, asked: int, nodes: Sequence[Node]) -> str:
    most = max(node.allocatable.get(name, 0) for node in nodes)
    return (
        f"{scheduling.shown(name, asked)}, and no node has more than {scheduling.shown(name, most)}"
    )


def _free(nodes: Sequence[Node], wanted: Wanted) -> Line:
    name = resource(wanted)
    ready = [node for node in nodes if placing.working(node)]
    if not ready:
        return Line("free", "warn", "none: no node that a run may go to is ready")
    free = {node.name: count for node in ready if (count := node.free(name)) is not None}
    if not free:
        return Line("free", "warn", "not known: this user may not list pods everywhere", GRANT)
    total = sum(node.allocatable[name] for node in ready)
    whole = sum(free.get(node.name) == node.allocatable[name] for node in ready)
    left = sum(free.values())
    if not left:
        return Line("free", "warn", f"none of {total} NPUs: a run waits for others to end")
    most = max(free.values())
    text = f"{left} of {total} NPUs; {most} on one node; {output.counted(whole, 'whole node')}"
    return Line("free", "ok", text)
