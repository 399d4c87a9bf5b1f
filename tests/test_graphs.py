"""The compile cache: its key tells graphs apart, and what is damaged is not used."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from jobs import commits, graphs, versions
from jobs.environment import Environment, Worker

pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")
CONSTANTS: dict[str, object] = {"rank": 4, "resolution": 128}


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    # Undone afterwards: other tests of this process must not compile into this cache.
    monkeypatch.setenv("MS_COMPILER_CACHE_ENABLE", "0")
    monkeypatch.setenv("MS_COMPILER_CACHE_PATH", "")
    work, store = tmp_path / "work", str(tmp_path / "store")
    return Environment(spec="", run="r", store=store, uid="u", work=work, device="CPU", threads=1)


def test_whatever_is_baked_into_a_graph_changes_the_key(env: Environment) -> None:
    from dataclasses import replace

    keys = {
        graphs.key("train", env, Worker(0, 2), CONSTANTS),
        graphs.key("infer", env, Worker(0, 2), CONSTANTS),
        graphs.key("train", env, Worker(1, 2), CONSTANTS),
        graphs.key("train", env, Worker(0, 1), CONSTANTS),
        graphs.key("train", replace(env, threads=2), Worker(0, 2), CONSTANTS),
        graphs.key("train", replace(env, device="Ascend"), Worker(0, 2), CONSTANTS),
        graphs.key("train", env, Worker(0, 2), {**CONSTANTS, "rank": 8}),
    }
    assert len(keys) == 7
    assert graphs.key("train", env, Worker(0, 2), dict(reversed(CONSTANTS.items()))) in keys


def test_versions_and_graph_mode_change_the_key(
    env: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cann = tmp_path / "version.cfg"
    monkeypatch.setattr(versions, "CANN_FILES", (cann,))
    keys = {graphs.key("train", env, Worker(0, 1), CONSTANTS)}
    for number in ("8.0.0", "8.0.1"):
        cann.write_text(f"runtime_installed_version=[7.6:{number}]\n")
        keys.add(graphs.key("train", env, Worker(0, 1), CONSTANTS))
    assert len(keys) == 3
    assert "compat.py" in graphs.SOURCES, "it sets the mode"


def test_every_module_that_shapes_a_graph_is_hashed() -> None:
    here = Path(graphs.__file__).parent
    assert all((here / name).is_file() for name in graphs.SOURCES)
    cells = {p.name for p in here.glob("*.py") if "nn.Cell)" in p.read_text()}
    assert cells <= set(graphs.SOURCES)


def test_a_cold_cache_is_published_and_found_warm(env: Environment) -> None:
    cold = graphs.open_cache("train", env, Worker(0, 1), CONSTANTS)
    assert not cold.warm
    (cold.folder / "rank_0").mkdir()
    (cold.folder / "rank_0" / "compile_cache_0.mindir").write_bytes(b"graph")
    cold.publish()
    warm = graphs.open_cache("train", env, Worker(0, 1), CONSTANTS)
    assert warm.warm
    assert (warm.folder / "rank_0" / "compile_cache_0.mindir").read_bytes() == b"graph"


def test_a_damaged_cache_is_ignored_with_a_warning(
    env: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    cold = graphs.open_cache("train", env, Worker(0, 1), CONSTANTS)
    (cold.folder / "graph").write_bytes(b"graph")
    cold.publish()
    cold.store.write(f"{cold.prefix}/graph", b"grahp")
    with caplog.at_level(logging.WARNING, "jobs.graphs"):
        found = graphs.open_cache("train", env, Worker(0, 1), CONSTANTS)
    assert not found.warm
    assert list(found.folder.iterdir()) == []
    assert "graphs=ignored" in caplog.text


@pytest.mark.parametrize("told", [True, False])
def test_a_foreign_cache_is_ignored_with_a_warning_and_replaced(
    env: Environment, caplog: pytest.LogCaptureFixture, tmp_path: Path, told: bool
) -> None:
    other = graphs.open_cache("train", env, Worker(0, 1), {**CONSTANTS, "rank": 8})
    (other.folder / "graph").write_bytes(b"of rank 8")
    other.publish()
    foreign = tmp_path / "foreign"
    commits.download(other.store, other.prefix, foreign)
    if not told:
        (foreign / graphs.OWN_KEY).unlink()
    own = graphs.open_cache("train", env, Worker(0, 1), CONSTANTS)
    commits.commit(own.store, own.prefix, foreign)
    with caplog.at_level(logging.WARNING, "jobs.graphs"):
        found = graphs.open_cache("train", env, Worker(0, 1), CONSTANTS)
    assert not found.warm
    assert list(found.folder.iterdir()) == []
    assert "holds the graphs of" in caplog.text
    (found.folder / "graph").write_bytes(b"of rank 4")
    found.publish()
    again = graphs.open_cache("train", env, Worker(0, 1), CONSTANTS)
    assert again.warm
    assert (again.folder / "graph").read_bytes() == b"of rank 4"
