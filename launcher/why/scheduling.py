"""Owns the answer to `will it ever fit`: a pod that no node takes, and the nodes. Pure.

Must not fetch node facts; where there are none, schedulerwords.py says less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from launcher import devices, output
from launcher.fields import Object
from launcher.nodes import CPU, DISK, MEMORY, Node, requested
from launcher.why import placing
from launcher.why.reasons import Reason

NEVER = "can never fit"
AGAIN = "cancel it and submit again with"
_GIB = 2**30


def verdict(spec: Object, nodes: Sequence[Node], pods: int, *, together: bool) -> Reason | None:
    """Return why the nodes do not take a pod; None if, by all that is known, one could.

    Args:
        spec: the pod's.
        nodes: all of the cluster.
        pods: how many such pods the run has.
        together: whether they are of use only all at once.
    """
    asked, npu = requested(spec), resource(spec)
    if npu and not _offering(nodes, npu):
        return _offered_by_none(asked[npu], npu, nodes)
    selected = [node for node in nodes if placing.selects(spec, node)]
    if not selected:
        return _no_label(spec, _offering(nodes, npu) or nodes, npu)
    offering = _offering(selected, npu)
    if not offering:
        return _offered_elsewhere(spec, npu, selected, nodes)
    open_to_it = [node for node in offering if not placing.repelling(spec, node)]
    if not open_to_it:
        return _tainted(spec, offering)
    large = [node for node in open_to_it if _holds(node.allocatable, asked)]
    if not large:
        return _too_large(asked, npu, open_to_it, pods)
    places = sum(_times(node.allocatable, asked) for node in large)
    if together and places < pods:
        return _too_many(asked, npu, pods, places)
    working = [node for node in large if placing.working(node)]
    if not working:
        return _none_works(large)
    return _full(asked, npu, working, pods)


def resource(spec: Object) -> str:
    """Return the extended resource of NPUs that a pod asks for; empty if there is none."""
    extended = [name for name in requested(spec) if "/" in name and "kubernetes.io/" not in name]
    known = [name for name in extended if name in devices.resources()]
    return next(iter([*known, *extended]), "")


def shown(name: str, value: int) -> str:
    """Return an amount of a resource for people: 8 NPUs, 64.0 GiB of memory."""
    if name == CPU:
        return f"{value / 1000:g} CPUs"
    if name in (MEMORY, DISK):
        return f"{output.size(value)} of {'memory' if name == MEMORY else 'disk'}"
    return output.counted(value, "NPU") if name in devices.resources() else f"{value} {name}"


def asks(spec: Object) -> str:
    """Return what a pod asks for, by its scarcest resource: 8 NPUs."""
    npu = resource(spec)
    return shown(npu, requested(spec)[npu]) if npu else "what it asks for"


def named(nodes: Sequence[Node]) -> str:
    """Return the names of some nodes: the first three, and how many more."""
    names = sorted(node.name for node in nodes)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _offering(nodes: Sequence[Node], npu: str) -> list[Node]:
    return [node for node in nodes if not npu or node.allocatable.get(npu)]


def _holds(room: Mapping[str, int], asked: Mapping[str, int]) -> bool:
    return all(room.get(name, 0) >= value for name, value in asked.items())


def _times(room: Mapping[str, int], asked: Mapping[str, int]) -> int:
    """Return how many such pods a node holds that is empty."""
    return min((room.get(name, 0) // value for name, value in asked.items() if value), default=1)


def _never(word: str, line: str, next_step: str) -> Reason:
    return Reason(word=word, line=f"{NEVER}: {line}", next_step=next_step, stuck=True)


def _have(count: int) -> str:
    return f"{count} node has" if count == 1 else f"{count} nodes have"


def _offered_by_none(count: int, npu: str, nodes: Sequence[Node]) -> Reason:
    others = {name: len(_offering(nodes, name)) for name in devices.resources()}
    found = {name: many for name, many in others.items() if many}
    line = f"asks {count} {npu}, which none of the {output.counted(len(nodes), 'node')} offers"
    if not found:
        step = "ask the administrator: the NPUs' device plugin runs on no node"
        return _never("no-resource", line, step)
    told = ", ".join(f"{_have(many)} {name}" for name, many in found.items())
    (name, *_) = found
    step = f"{AGAIN} resource = {name!r} in launcher.toml, or the plugin that publishes it"
    return _never("no-resource", f"{line}; {told}", step.replace("'", '"'))


def _no_label(spec: Object, nodes: Sequence[Node], npu: str) -> Reason:
    wanted = placing.selector(spec)
    what = "node with NPUs" if npu else "node"
    for key, value in wanted.items():
        found = Counter(node.labels.get(key) for node in nodes)
        if found[value]:
            continue
        common = [(v, n) for v, n in found.most_common() if v]
        others = [
            f"{_have(n)} {key}={v}" for v, n in sorted(common[:3], key=lambda r: (-r[1], r[0]))
        ]
        others += [f"and {len(common) - 3} other values"] if len(common) > 3 else []
        if found[None]:
            others.append(f"{_have(found[None])} no {key}")
        line = f"no {what} has the label {key}={value}; {', '.join(others)}"
        label = f"kubectl label node NODE {key}={value}"
        types = sorted(v for v in found if v and v in devices.SERVERS)
        if key == devices.ACCELERATOR_TYPE and types:
            ways = " or ".join(f"--server {name}" for name in types)
            return _never("label", line, f"{AGAIN} {ways}; or, if they are of that type, {label}")
        return _never("label", line, f"{label}, or take the label out of the base's nodeSelector")
    if wanted and not any(wanted.items() <= node.labels.items() for node in nodes):
        each = ", ".join(
            f"{key}={value} ({sum(node.labels.get(key) == value for node in nodes)})"
            for key, value in wanted.items()
        )
        line = f"no {what} has all labels that it asks for; in brackets how many have each: {each}"
        return _never("label", line, "label a node, or take one out of the base's nodeSelector")
    line = f"no {what} is one that the pod's required node affinity admits"
    return _never("label", line, "see nodeAffinity in the base manifest, and the nodes' labels")


def _offered_elsewhere(
    spec: Object, npu: str, selected: Sequence[Node], nodes: Sequence[Node]
) -> Reason:
    labels = ", ".join(f"{key}={value}" for key, value in placing.selector(spec).items())
    others = len(_offering(nodes, npu))
    one = len(selected) == 1
    elsewhere = f"{output.counted(others, 'other node')} do{'es' * (others == 1)}"
    line = (
        f"{named(selected)} {'has' if one else 'have'} the labels {labels}, but"
        f" offer{'s' * one} no {npu} ({elsewhere})"
    )
    step = f"is the device plugin running on {named(selected)}? ask the administrator"
    return _never("no-resource", line, step)


def _tainted(spec: Object, nodes: Sequence[Node]) -> Reason:
    found = Counter(str(taint) for node in nodes for taint in placing.repelling(spec, node))
    (first, _), *rest = found.most_common()
    told = first if not rest else ", ".join(f"{taint} ({n})" for taint, n in found.most_common())
    every = "the only node that fits" if len(nodes) == 1 else f"all {len(nodes)} nodes that fit"
    line = (
        f"{every} otherwise ({named(nodes)}) {'is' if len(nodes) == 1 else 'are'} tainted {told},"
        " which the run does not tolerate"
    )
    step = (
        f"kubectl taint node NODE {first}- where it is no longer meant, or add a toleration to the"
        " base manifest"
    )
    return _never("taint", line, step)


def _too_large(asked: Mapping[str, int], npu: str, nodes: Sequence[Node], pods: int) -> Reason:
    for name in sorted(asked, key=lambda name: name != npu):
        best = max(nodes, key=lambda node: node.allocatable.get(name, 0))
        most = best.allocatable.get(name, 0)
        if most >= asked[name]:
            continue
        line = f"asks {shown(name, asked[name])} on one node, and the largest has"
        line += f" {most if name == npu else shown(name, most)} ({best.name})"
        return _never("too-large", line, _smaller(name, asked, npu, best, pods))
    line = f"no node has {' and '.join(shown(n, v) for n, v in asked.items())} at once"
    return _never("too-large", line, f"{AGAIN} fewer --npus, or with more --nodes")


def _smaller(name: str, asked: Mapping[str, int], npu: str, best: Node, pods: int) -> str:
    """Return how to ask for what the largest node has."""
    most = best.allocatable.get(name, 0)
    count = max(1, asked.get(npu, 1))
    if name == npu:
        fits, total = _legal(best, most, pods), count * pods
        ways = [f"--npus {fits}"] if fits else []
        nodes = total // most if most and total % most == 0 else 0
        # Several nodes make one world of whole servers only (devices.py).
        if nodes > 1 and _legal(best, most, nodes) == most:
            ways.append(f"--nodes {nodes} --npus {most}")
        return f"{AGAIN} {', or '.join(ways) or 'another --server'}"
    for resource, key, unit in ((MEMORY, "memory_per_npu_gib", _GIB), (CPU, "cpu_per_npu", 1000)):
        if name == resource:
            return f"{AGAIN} {key} = {most // count // unit} in launcher.toml, or fewer --npus"
    return f"{AGAIN} fewer --npus; or a larger node has to be added"


def _legal(node: Node, most: int, pods: int) -> int:
    """Return the most NPUs, up to `most`, that each of the pods can have there; 0 if none."""
    server = devices.SERVERS.get(node.labels.get(devices.ACCELERATOR_TYPE, ""))
    if server is None:
        return most
    return max((n for n in server.counts(pods, world=pods > 1) if n <= most), default=0)


def _too_many(asked: Mapping[str, int], npu: str, pods: int, places: int) -> Reason:
    each = shown(npu, asked[npu]) if npu else "what it asks for"
    line = f"asks {each} on each of {pods} nodes at once, and there is room for {places} such pods"
    line = line.replace("1 such pods", "1 such pod") if places == 1 else line
    return _never("too-large", f"{line} even when all else has ended", f"{AGAIN} --nodes {places}")


def _none_works(nodes: Sequence[Node]) -> Reason:
    cordoned = [node for node in nodes if node.unschedulable]
    away = [node for node in nodes if not node.unschedulable]
    told = [f"{named(cordoned)} cordoned"] if cordoned else []
    told += [f"{named(away)} not ready"] if away else []
    only = "the only node" if len(nodes) == 1 else f"none of the {len(nodes)} nodes"
    line = (
        f"{only} that could hold it {'is away' if len(nodes) == 1 else 'works'}: {', '.join(told)}"
    )
    steps = [f"kubectl uncordon {cordoned[0].name}"] if cordoned else []
    steps += [f"wait for {away[0].name}, or have it looked at"] if away else []
    return Reason(word="nodes-away", line=line, next_step="; ".join(steps))


def _full(asked: Mapping[str, int], npu: str, nodes: Sequence[Node], pods: int) -> Reason | None:
    what = shown(npu, asked[npu]) if npu else "what it asks for"
    each = f"{what} on each of {pods} nodes" if pods > 1 else what
    later = "it fits when other runs end"
    if any(node.used is None for node in nodes):
        line = f"waits for {each}: {output.counted(len(nodes), 'node')} could hold it, and none has"
        return Reason(word="no-room", line=f"{line} room now; {later}", next_step=_FACTS)
    short = _shortest(asked, npu, nodes)
    if not short:
        return None
    free = {node.name: node.free(short) or 0 for node in nodes}
    best = max(nodes, key=lambda node: free[node.name])
    most, total = free[best.name], sum(node.allocatable.get(short, 0) for node in nodes)
    if short == npu:
        have = f"{sum(free.values()) or 'none'} of {total} are free"
        have += f", at most {most} on one node ({best.name})" if most else ""
        fits = _fits_now(npu, nodes, pods, most)
        step = f"wait; or {AGAIN} --npus {fits}, which fits now" if fits else "wait"
    else:
        have = f"the NPUs are free, but it also asks {shown(short, asked[short])} on the same node"
        have += f", and at most {shown(short, most)} is free there ({best.name})"
        step = "wait"
    return Reason(word="no-room", line=f"waits for {each}: {have}; {later}", next_step=step)


def _fits_now(npu: str, nodes: Sequence[Node], pods: int, most: int) -> int:
    """Return the largest number of NPUs that each of the pods could have at once; 0 if none."""
    for count in range(most, 0, -1):
        holding = [node for node in nodes if _legal(node, count, pods) == count]
        if sum((node.free(npu) or 0) // count for node in holding) >= pods:
            return count
    return 0


def _shortest(asked: Mapping[str, int], npu: str, nodes: Iterable[Node]) -> str:
    """Return the resource that is short: the NPUs, or what is short where there are NPUs."""
    left = list(nodes)
    for name in sorted(asked, key=lambda name: name != npu):
        room = [node for node in left if (node.free(name) or 0) >= asked[name]]
        if not room:
            return name
        left = room
    return ""


_FACTS = (
    "wait; who may list all pods (k8s/components/node-facts) is told here what is free and where"
)
