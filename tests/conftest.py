"""What every test may need: how a missing external part is told."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from jobs.environment import Environment
from jobs.stores import FileStore


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=20, help="kill -9s of a chaos test")
    parser.addoption("--chaos-seed", type=int, default=0, help="seed of their moments")


@pytest.fixture(scope="session")
def missing() -> Callable[[str, str], NoReturn]:
    """Return `missing(mark, reason)`: the test is skipped, or fails if REQUIRE names the mark.

    REQUIRE is a comma-separated list of marks, set where the parts are known to be there (CI): a
    skip would hide that they are not.
    """

    def told(mark: str, reason: str) -> NoReturn:
        if mark in os.environ.get("REQUIRE", "").split(","):
            pytest.fail(f"{mark}: {reason}", pytrace=False)
        pytest.skip(reason)

    return told


@pytest.fixture(scope="session")
def on_cpu() -> None:
    """Let MindSpore compute on the CPU; it takes a device once, before its first kernel."""
    import mindspore

    with contextlib.suppress(RuntimeError):  # an earlier test has begun: on the CPU, by default
        mindspore.set_device("CPU")


@pytest.fixture(scope="session")
def random_sdxl(on_cpu: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the small SDXL's pipeline folder, which nobody may write into."""
    import untrained

    from jobs.compat import eager

    folder = tmp_path_factory.mktemp("random") / "pipeline"
    with eager():
        untrained.write_folder(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Yield an empty folder; afterwards no local run in a store below it lives."""
    from launcher.backends import local, localrun

    yield tmp_path
    for store in tmp_path.iterdir():
        for files in localrun.everyone(store):
            local.cancel(files, now=True)


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    """Return where an attempt of run `r` works alone, with a folder as its store."""
    store, work = str(tmp_path / "store"), tmp_path / "work"
    return Environment(spec="", run="r", store=store, uid="u", work=work, device="CPU")


@pytest.fixture
def store(env: Environment) -> FileStore:
    """Return the store of `env`."""
    return FileStore(Path(env.store))
