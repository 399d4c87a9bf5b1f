from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import devices
from launcher.devices import PLUGINS, SERVERS, check_npus
from launcher.errors import Misconfigured, Usage

SERVER = st.sampled_from(list(SERVERS.values()))


def refused(server: str, npus: int, nodes: int = 1) -> Usage:
    with pytest.raises(Usage) as caught:
        check_npus(SERVERS[server], npus, nodes)
    return caught.value


@pytest.mark.parametrize(
    ("server", "legal"),
    [
        ("module", {1, 2, 4, 8}),
        ("half", {1, 2, 4}),
        ("card", {1, 2}),
        ("module-910b-8", set(range(1, 9))),
        ("module-910b-16", {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16}),
        ("card-910b-2", {1, 2}),
        ("module-a3-16", {1, 2, 4, 6, 8, 10, 12, 14, 16}),
        ("module-a3-16-super-pod", {1, 2, 4, 6, 8, 10, 12, 14, 16}),
        ("module-a3-8-super-pod", {1, 2, 4, 6, 8}),
    ],
)
def test_the_legal_counts_are_those_of_the_documentation(server: str, legal: set[int]) -> None:
    for npus in range(-1, 20):
        if npus in legal:
            check_npus(SERVERS[server], npus)
        else:
            refused(server, npus)
    assert len(SERVERS) == 9


def test_three_on_a_910a_is_refused_with_the_reason_and_the_next_count() -> None:
    error = refused("module", 3)
    assert error.text == (
        "--npus 3: server module (Atlas 800, 910A) gives 1, 2, 4, 8 to a pod, because its eight "
        "NPUs are two rings of four, and a pod lives in one ring or fills both"
    )
    assert error.hint == "--npus 4 is the next legal count"
    assert error.code == 2


@pytest.mark.parametrize(
    ("server", "npus", "nodes", "hint"),
    [
        ("module-910b-8", 16, 1, "--nodes 2 --npus 8"),
        ("module-910b-8", 12, 1, "--nodes 2 --npus 8 (16 in all)"),
        ("module-910b-8", 16, 2, "--nodes 4 --npus 8"),
        ("module", 12, 1, "--nodes 2 --npus 8 (16 in all)"),
        ("card", 3, 1, "--nodes 2 --npus 2 (4 in all)"),
        ("card", 5, 1, "--nodes 4 --npus 2 (8 in all)"),
        ("module-a3-16", 17, 1, "--nodes 2 --npus 16 (32 in all)"),
        ("module-910b-8", 4, 2, "--nodes 1 --npus 8"),
        ("module-910b-8", 1, 3, "--nodes 1 --npus 3"),
        ("module", 4, 3, "--nodes 2 --npus 8 (16 in all)"),
    ],
)
def test_more_than_a_server_holds_is_refused_with_what_fits(
    server: str, npus: int, nodes: int, hint: str
) -> None:
    assert refused(server, npus, nodes).hint == hint


def test_hccl_does_not_span_twelve_of_a_910a() -> None:
    error = refused("half", 4, 3)
    assert "HCCL spans 1, 2, 4 or a multiple of 8 NPUs, not 12" in error.text
    assert error.hint == "--nodes 4 --npus 4 (16 in all)"
    check_npus(SERVERS["half"], 4, 3, world=False)


@given(SERVER, st.integers(1, 20), st.integers(2, 40))
def test_a_world_over_several_nodes_takes_whole_ones(
    server: devices.Server, npus: int, nodes: int
) -> None:
    try:
        check_npus(server, npus, nodes)
    except Usage:
        assert npus != server.npus or not server.takes(npus * nodes)
    else:
        assert npus == server.npus
        assert server.takes(npus * nodes)


@given(SERVER, st.integers(1, 20), st.integers(1, 40))
def test_without_a_world_each_node_counts_for_itself(
    server: devices.Server, npus: int, nodes: int
) -> None:
    if npus in server.legal:
        check_npus(server, npus, nodes, world=False)
    else:
        with pytest.raises(Usage):
            check_npus(server, npus, nodes, world=False)


@given(SERVER, st.integers(-2, 200), st.integers(-1, 40), st.booleans())
def test_what_a_refusal_proposes_is_legal(
    server: devices.Server, npus: int, nodes: int, world: bool
) -> None:
    try:
        check_npus(server, npus, nodes, world=world)
    except Usage as error:
        flags = dict(re.findall(r"--(npus|nodes) (\d+)", error.hint))
        assert flags
        proposed = int(flags.get("npus", max(npus, 1))), int(flags.get("nodes", max(nodes, 1)))
        if npus >= 1 and nodes >= 1:
            check_npus(server, *proposed, world=world)
            assert proposed[0] * proposed[1] >= npus * nodes


def test_unknown_profiles_are_named_with_the_known_ones() -> None:
    with pytest.raises(Misconfigured, match="server '910B': unknown server type") as caught:
        devices.server("910B")
    assert "module-910b-8" in caught.value.hint
    with pytest.raises(Misconfigured, match="plugin 'nvidia': unknown device plugin") as caught:
        devices.plugin("nvidia")
    assert caught.value.hint == "one of mindcluster, cce, hami"


@pytest.mark.parametrize(
    ("plugin", "server", "resource", "selector"),
    [
        ("mindcluster", "module", "huawei.com/Ascend910", {"accelerator-type": "module"}),
        (
            "mindcluster",
            "module-a3-16",
            "huawei.com/Ascend910",
            {"accelerator-type": "module-a3-16"},
        ),
        ("cce", "module-910b-8", "huawei.com/ascend-1980", {}),
        ("hami", "module-910b-8", "huawei.com/Ascend910B", {"ascend": "on"}),
        ("hami", "module", "huawei.com/Ascend910A", {"ascend": "on"}),
        ("hami", "module-a3-16", "huawei.com/Ascend910C", {"ascend": "on"}),
    ],
)
def test_each_plugin_has_its_resource_and_labels(
    plugin: str, server: str, resource: str, selector: dict[str, str]
) -> None:
    profile, machine = PLUGINS[plugin], SERVERS[server]
    assert devices.resource(profile, machine) == resource
    assert devices.node_selector(profile, machine) == selector
    assert resource in devices.resources()
    assert set(selector) <= devices.node_labels()
