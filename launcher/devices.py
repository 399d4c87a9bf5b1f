"""Owns what is known of Ascend servers and device plugins, as data, and the legal NPU counts. Pure.

Must not decide anything else about a run. Sources: the MindCluster documentation (affinity of
Ascend AI processors; node labels; 15_yaml_configuration) and the scheduler plugin's own tables
(github.com/Ascend/mind-cluster, component/ascend-for-volcano/internal/npu).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from launcher.errors import Misconfigured, Usage

ACCELERATOR_TYPE = "accelerator-type"
"""Node label with the server type; an administrator sets it when MindCluster is installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One type of server, named by its node label `accelerator-type`."""

    name: str
    title: str
    npus: int
    """NPUs that Kubernetes sees on one server."""
    legal: tuple[int, ...]
    """How many of them one pod can get."""
    why: str
    """Why not the others; completes `..., because`."""
    multiple: int = 1
    """Over several pods HCCL wants 1, 2, 4 or a multiple of this many NPUs in all."""
    ring: str = "ascend-910b"
    """Value of MindCluster's label `ring-controller.atlas`; A2 and A3 share one."""

    def per_pod(self, nodes: int, *, world: bool = True) -> tuple[int, ...]:
        """Return how many NPUs a pod can get when the run has `nodes` pods.

        Args:
            nodes: pods of the run.
            world: whether they make one world, as in training: that takes whole servers.
        """
        return (self.npus,) if world and nodes > 1 else self.legal

    def counts(self, nodes: int, *, world: bool = True) -> tuple[int, ...]:
        """Return those of them whose sum over all pods of a world HCCL can span as well."""
        found = self.per_pod(nodes, world=world)
        return tuple(n for n in found if not world or self.takes(n * nodes))

    def takes(self, total: int) -> bool:
        """Return whether HCCL can span `total` NPUs."""
        return total in (1, 2, 4) or total % self.multiple == 0


_RINGS = "its eight NPUs are two rings of four, and a pod lives in one ring or fills both"
_PAIRS = "its NPUs come in pairs on one package"
_EVEN = (2, 4, 6, 8, 10, 12, 14, 16)
# HCCL on the 910A: "devNum must be divisible by 8 or equal to 1, 2 or 4" (mind-cluster,
# component/ascend-faultdiag, kg-config.json), hence multiple=8 for its three forms.
_SERVERS = (
    # internal/npu/ascend910/.../module910x8/frame.go refuses 3, 5, 6 and 7.
    Server(
        name="module",
        title="Atlas 800, 910A",
        npus=8,
        legal=(1, 2, 4, 8),
        why=_RINGS,
        multiple=8,
        ring="ascend-910",
    ),
    Server(
        name="half",
        title="half an Atlas 800, 910A",
        npus=4,
        legal=(1, 2, 4),
        multiple=8,
        ring="ascend-910",
        why="its four NPUs are one ring, which is used alone, in pairs or whole",
    ),
    Server(
        name="card",
        title="Atlas 300T, 910A",
        npus=2,
        legal=(1, 2),
        multiple=8,
        ring="ascend-910",
        why="it has two cards",
    ),
    # Full mesh: the base handler of internal/npu/factory.go, no count refused.
    Server(
        name="module-910b-8",
        title="Atlas 800T A2 / 900 A2 PoD",
        npus=8,
        legal=tuple(range(1, 9)),
        why="it has eight NPUs",
    ),
    # module910bx16/frame.go refuses 9, 11, 13 and 15.
    Server(
        name="module-910b-16",
        title="Atlas 200T A2 Box16",
        npus=16,
        legal=(*range(1, 9), 10, 12, 14, 16),
        why="its NPUs are two rings of eight, and more than eight are split evenly",
    ),
    Server(name="card-910b-2", title="Atlas 300T A2", npus=2, legal=(1, 2), why="it has two cards"),
    # A3: 8 packages of two dies (affinity document).
    Server(
        name="module-a3-16",
        title="Atlas 800T A3",
        npus=16,
        legal=(1, *_EVEN),
        why=_PAIRS,
    ),
    Server(
        name="module-a3-16-super-pod",
        title="Atlas 900 A3 super pod",
        npus=16,
        legal=(1, *_EVEN),
        why=_PAIRS,
    ),
    Server(
        name="module-a3-8-super-pod",
        title="Atlas 900 A3 super pod, 8 NPUs",
        npus=8,
        legal=(1, 2, 4, 6, 8),
        why=_PAIRS,
    ),
)
SERVERS: Mapping[str, Server] = {row.name: row for row in _SERVERS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One device plugin: the resource it publishes and the node labels it goes by."""

    name: str
    resource: str
    """Extended resource of a whole NPU."""
    resource_of: Mapping[str, str] = field(default_factory=dict)
    """Server type -> resource, where the plugin names the chip."""
    selects_server: bool = False
    """Whether nodes carry the label `accelerator-type`."""
    node_selector: Mapping[str, str] = field(default_factory=dict)


_PLUGINS = (
    # One name for 910A, A2 and A3 (component/ascend-common/api/default_name.go).
    Plugin(name="mindcluster", resource="huawei.com/Ascend910", selects_server=True),
    # Huawei Cloud CCE and ModelArts.
    Plugin(name="cce", resource="huawei.com/ascend-1980"),
    # Project-HAMi names the chip, and B2, B3, B4 have names of their own: the setting
    # `resource` says which. Its nodes carry ascend=on.
    Plugin(
        name="hami",
        resource="huawei.com/Ascend910B",
        resource_of={
            "module": "huawei.com/Ascend910A",
            "half": "huawei.com/Ascend910A",
            "card": "huawei.com/Ascend910A",
            "module-a3-16": "huawei.com/Ascend910C",
            "module-a3-16-super-pod": "huawei.com/Ascend910C",
            "module-a3-8-super-pod": "huawei.com/Ascend910C",
        },
        node_selector={"ascend": "on"},
    ),
)
PLUGINS: Mapping[str, Plugin] = {row.name: row for row in _PLUGINS}


def server(name: str) -> Server:
    """Return the server type of that name.

    Raises:
        Misconfigured: there is none.
    """
    if name not in SERVERS:
        known = ", ".join(SERVERS)
        raise Misconfigured(f"server {name!r}: unknown server type", f"one of {known}")
    return SERVERS[name]


def plugin(name: str) -> Plugin:
    """Return the device plugin of that name.

    Raises:
        Misconfigured: there is none.
    """
    if name not in PLUGINS:
        raise Misconfigured(
            f"plugin {name!r}: unknown device plugin", f"one of {', '.join(PLUGINS)}"
        )
    return PLUGINS[name]


def resource(plugin: Plugin, server: Server) -> str:
    """Return the extended resource that the plugin publishes on such servers."""
    return plugin.resource_of.get(server.name, plugin.resource)


def resources() -> tuple[str, ...]:
    """Return every extended resource that some plugin publishes for whole NPUs."""
    return tuple(
        dict.fromkeys(
            name for row in _PLUGINS for name in (row.resource, *row.resource_of.values())
        )
    )


def node_selector(plugin: Plugin, server: Server) -> dict[str, str]:
    """Return the node labels a pod must ask for.

    The trap: MindCluster's scheduler plugin takes a pod without `accelerator-type` for one that
    wants a 910A (getting 3, 5, 6 or 7 NPUs refused and four-rings honoured that an A2 does not
    have), so the label is always asked for (internal/npu/factory.go, get910CardHandlerName).
    """
    labels = dict(plugin.node_selector)
    if plugin.selects_server:
        labels[ACCELERATOR_TYPE] = server.name
    return labels


def node_labels() -> frozenset[str]:
    """Return every node label that some plugin selects by."""
    return frozenset({ACCELERATOR_TYPE}.union(*(row.node_selector for row in _PLUGINS)))


def check_npus(server: Server, npus: int, nodes: int = 1, *, world: bool = True) -> None:
    """Check that each of `nodes` pods can get `npus` NPUs of such a server.

    Args:
        server: the type of server.
        npus: NPUs per pod.
        nodes: pods of the run.
        world: whether all its workers speak to each other, as in training.

    Raises:
        Usage: they cannot; told with the reason and with the next count that is legal.
    """
    if npus < 1:
        raise Usage(f"--npus {npus}: a run needs an NPU", "--npus 1")
    if nodes < 1:
        raise Usage(f"--nodes {nodes}: a run needs a node", "--nodes 1")
    what = f"server {server.name} ({server.title})"
    if npus > server.npus:
        hint = _spread(server, npus * nodes, world=world)
        raise Usage(f"--npus {npus}: {what} has {server.npus}", hint)
    if nodes > 1 and world:
        _check_world(server, npus, nodes)
    elif npus not in server.legal:
        legal = ", ".join(str(n) for n in server.legal)
        above = [n for n in server.legal if n > npus]
        raise Usage(
            f"--npus {npus}: {what} gives {legal} to a pod, because {server.why}",
            f"--npus {above[0]} is the next legal count",
        )


def _check_world(server: Server, npus: int, nodes: int) -> None:
    """Check that `npus` NPUs on each of several servers can be one world."""
    if npus != server.npus:
        raise Usage(
            f"--nodes {nodes} --npus {npus}: training over several nodes takes whole ones, and"
            f" server {server.name} ({server.title}) has {server.npus} NPUs",
            _spread(server, npus * nodes, world=True),
        )
    if not server.takes(npus * nodes):
        why = f"HCCL spans 1, 2, 4 or a multiple of {server.multiple} NPUs, not {npus * nodes}"
        raise Usage(
            f"--nodes {nodes} --npus {npus}: {why}", _spread(server, npus * nodes, world=True)
        )


def _spread(server: Server, total: int, *, world: bool) -> str:
    """Return the flags that get `total` NPUs from the fewest servers, or the fewest more."""
    nodes = -(-total // server.npus)
    while not (fits := [n for n in server.counts(nodes, world=world) if n * nodes >= total]):
        nodes += 1
    more = "" if nodes * fits[0] == total else f" ({nodes * fits[0]} in all)"
    return f"--nodes {nodes} --npus {fits[0]}{more}"
