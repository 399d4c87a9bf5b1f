"""The image, built for real on a stand-in for the CANN base, and run as Kubernetes would run it.

Takes minutes and a download of some 750 MB the first time; then buildah's layers are reused.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest
from building import ROOT, TAG, build, build_for_npus, buildah, config_of, layer_bytes, storage

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

SPEC = {
    "kind": "train", "model": "tiny", "data": "tiny", "precision": "fp32",
    "resolution": 128, "steps": 2, "save_every": 2, "log_every": 1,
}  # fmt: skip
JOB = {
    "JOB_SPEC": json.dumps(SPEC), "JOB_RUN": "inside", "JOB_STORE": "file:///scratch/store",
    "JOB_UID": "u-1", "JOB_WORK": "/scratch", "JOB_DEVICE": "CPU", "JOB_WORKERS": "1",
    "JOB_NODES": "1", "TERMINATION_LOG": "/scratch/termination",
}  # fmt: skip


@dataclass(frozen=True)
class Image:
    """A built image and a container made of it, not started."""

    container: str
    config: dict[str, Any]
    base: dict[str, Any]
    layers: tuple[int, ...]
    """Bytes of our layers, uncompressed."""

    def run(
        self, command: list[str] | None = None, user: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run entrypoint and command in a process of its own, as a container runtime would.

        `buildah run` itself knows environment, user and folder of the image, not its entrypoint.
        """
        environment = [part for pair in variables.items() for part in ("--env", "=".join(pair))]
        environment += ["--user", user] if user else []
        whole = [*self.config["Entrypoint"], *(command or self.config["Cmd"])]
        return subprocess.run(
            ["buildah", "run", "--isolation", "chroot", *environment, self.container, "--", *whole],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def python(self, code: str) -> str:
        """Run a few lines of Python inside."""
        ended = self.run(["python", "-c", code])
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()


@pytest.fixture(scope="module")
def image(
    tmp_path_factory: pytest.TempPathFactory,
    missing: Callable[[str, str], NoReturn],
) -> Iterator[Image]:
    scratch = tmp_path_factory.mktemp("image")
    with storage(scratch, missing) as graph:
        base = build(scratch)
        container = buildah("from", "--pull-never", TAG)
        try:
            sizes = layer_bytes(graph, TAG)[len(layer_bytes(graph, base)) :]
            yield Image(container, config_of(TAG), config_of(base), tuple(sizes))
        finally:
            buildah("rm", container)


def test_entrypoint_of_the_base_stays(image: Image) -> None:
    assert image.config["Entrypoint"] == image.base["Entrypoint"]
    assert image.config["Cmd"] == ["python3", "-m", "jobs.runtime"]


def test_entrypoint_brings_canns_environment(image: Image) -> None:
    shown = image.run(["env"]).stdout.splitlines()
    found = dict(line.partition("=")[::2] for line in shown)
    assert found["ATB_HOME_PATH"] == "/usr/local/Ascend/nnal/atb/latest"
    assert found["LD_LIBRARY_PATH"].startswith("/usr/local/Ascend/ascend-toolkit/latest/lib64:")
    assert "/usr/local/Ascend/driver/lib64/driver/" in found["LD_LIBRARY_PATH"]


def test_user_and_writable_folders(image: Image) -> None:
    assert image.config["User"] == "1000:1000"
    assert image.run(["id", "-u"]).stdout.strip() == "1000"
    assert image.run(["id", "-g"]).stdout.strip() == "1000"
    script = 'for f in "$HOME" "$ASDOPS_LOG_PATH" "$PWD"; do [ -w "$f" ] || echo "$f"; done'
    ended = image.run(["bash", "-c", script])
    assert (ended.returncode, ended.stdout) == (0, "")
    assert image.run(["touch", "/opt/app/jobs/x"]).returncode != 0


def test_without_environment_it_ends_with_78_and_one_line(image: Image) -> None:
    for command in (None, ["python", "-m", "jobs.runtime"]):
        ended = image.run(command)
        lines = (ended.stdout + ended.stderr).strip().splitlines()
        assert ended.returncode == 78
        # buildah says in words of its own that a command failed.
        ours = [line for line in lines if not line.endswith("exit status 78")]
        ours = [line for line in ours if line != "subprocess exited with status 78"]
        assert len(ours) == 1, ours
        assert "bad spec: environment: JOB_SPEC: missing" in ours[0]


def test_nothing_of_the_launcher_is_inside(image: Image) -> None:
    code = """
import importlib.util
print(*(n for n in ("kubernetes", "typer", "launcher", "pytest") if importlib.util.find_spec(n)))
"""
    assert image.python(code) == ""


def test_every_module_of_the_jobs_can_be_imported(image: Image) -> None:
    code = """
import importlib, pkgutil, jobs
names = [m.name for m in pkgutil.walk_packages(jobs.__path__, "jobs.")]
for name in names:
    importlib.import_module(name)
print(len(names), jobs.__file__)
"""
    count, _, where = image.python(code).rpartition("\n")[2].partition(" ")
    assert int(count) > 20
    assert where == "/opt/app/jobs/__init__.py"


def test_packages_are_the_pinned_ones(image: Image) -> None:
    listed = image.run(["python", "-m", "pip", "freeze", "--local"]).stdout.splitlines()
    inside = {row.lower().replace("_", "-") for row in listed}
    pins = set((ROOT / "constraints.txt").read_text().splitlines())
    assert len(inside & pins) > 20
    assert {row.partition("==")[0] for row in inside - pins} == {"mindspore"}
    assert image.run(["ip", "-j", "addr"]).returncode == 0


def test_the_image_for_npus_is_built_of_what_the_base_brings(
    image: Image, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = image.config["Labels"]["org.opencontainers.image.base.name"]
    name = build_for_npus(tmp_path_factory.mktemp("npu"), base)
    container = buildah("from", "--pull-never", name)
    try:
        listed = buildah("run", "--isolation", "chroot", container, "--", "python", "-m", "pip",
                         "list", "--format=freeze")  # fmt: skip
        config = config_of(name)
    finally:
        buildah("rm", container)
        buildah("rmi", name)
    found = {row.lower().replace("_", "-") for row in listed.splitlines()}
    assert found >= {"mindspore==2.5.0", "mindone==0.3.0", "te==0.4.0", "hccl==0.1.0"}
    assert "JOB_FRAMEWORK=ascend" in config["Env"]
    pins = set((ROOT / "constraints.txt").read_text().splitlines())
    own = {"mindspore", "te", "hccl", "sympy", "mpmath", "pip", "setuptools", "wheel"}
    assert {row.partition("==")[0] for row in found - pins} <= own


def test_a_framework_that_there_is_not_is_named(image: Image) -> None:
    base = image.config["Labels"]["org.opencontainers.image.base.name"]
    words = ("--build-arg", f"BASE_IMAGE={base}", "--build-arg", "FRAMEWORK=gpu")
    ended = subprocess.run(
        ["buildah", "build", "--layers", "--force-rm", *words, str(ROOT)], capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    assert "FRAMEWORK is 'gpu': it must be ascend or cpu" in ended.stdout + ended.stderr


def test_it_runs_the_main_job(image: Image) -> None:
    ended = image.run(**JOB)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]
    assert "cann=7.6.0.1.220:8.0.0" in ended.stdout
    result = json.loads(image.run(["cat", "/scratch/store/inside/result.json"]).stdout)
    assert (result["run"], result["steps"]) == ("inside", 2)


def test_labels(image: Image) -> None:
    found = image.config["Labels"]
    assert found["org.opencontainers.image.revision"] == "abc123"
    assert found["org.opencontainers.image.base.name"].startswith("localhost/cann-stand-in:")


def test_any_user_of_the_devices_group_runs_the_main_job(image: Image) -> None:
    """A namespace may force its own uids; the group owns the devices and what may be written."""
    variables = JOB | {"JOB_WORK": "/scratch/other", "JOB_STORE": "file:///scratch/other/store"}
    ended = image.run(user="54321:1000", **variables)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]


def test_it_computes_on_what_it_was_built_for(image: Image) -> None:
    variables = JOB | {"JOB_WORK": "/scratch/npu", "JOB_STORE": "file:///scratch/npu/store"}
    ended = image.run(**(variables | {"JOB_DEVICE": "Ascend"}))
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]


def test_layers_hold_little_but_the_packages(image: Image) -> None:
    code = """
import importlib.metadata, pathlib, subprocess
files = {pathlib.Path(d.locate_file(f)).resolve() for d in importlib.metadata.distributions(
    path=["/opt/venv/lib/python3.11/site-packages"]) for f in d.files or ()}
print(sum(f.stat().st_size for f in files if f.is_file()))
"""
    packages = int(image.python(code))
    assert packages > 1 << 30
    assert sum(image.layers) <= 1.2 * packages, (image.layers, packages)
