"""The image, built for real on a stand-in for the CANN base, and run as Kubernetes would run it.

Takes minutes and a download of some 750 MB the first time; then buildah's layers are reused. They
and the stand-in are kept in $XDG_CACHE_HOME/ascend-diffusion-jobs (or ~/.cache/...).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
BASE_SCRIPT = Path(__file__).with_name("base.sh")
SPEC = {
    "kind": "train", "model": "tiny", "data": "tiny", "precision": "fp32",
    "resolution": 128, "steps": 2, "save_every": 2, "log_every": 1,
}  # fmt: skip
JOB = {
    "JOB_SPEC": json.dumps(SPEC), "JOB_RUN": "inside", "JOB_STORE": "file:///scratch/store",
    "JOB_UID": "u-1", "JOB_WORK": "/scratch", "JOB_DEVICE": "CPU", "JOB_WORKERS": "1",
    "JOB_NODES": "1", "TERMINATION_LOG": "/scratch/termination",
}  # fmt: skip


def buildah(*arguments: str) -> str:
    """Run buildah; its words go to the test's output."""
    ended = subprocess.run(["buildah", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 0, f"buildah {' '.join(arguments[:2])} ended with {ended.returncode}"
    return ended.stdout.strip()


def pip_settings(folder: Path) -> list[str]:
    """Return volumes that lend this machine's own pip settings to the build, and to it alone."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings: dict[str, str] = {}
    for line in sorted(listed.splitlines(), reverse=True):  # `global.` before `:env:`, which wins
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = value.strip("'\"")
    if bundle := os.environ.get("SSL_CERT_FILE"):
        settings.setdefault("cert", bundle)
    config = folder / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{k} = {v}\n" for k, v in settings.items()))
    paths = {Path(value) for value in settings.values() if value.startswith("/")}
    volumes = [f"{config}:/etc/pip.conf:ro"]
    volumes += [f"{path}:{path}:ro" for path in sorted(paths) if path.exists()]
    return [part for volume in volumes for part in ("--volume", volume)]


@dataclass(frozen=True)
class Image:
    """A built image and a container made of it, not started."""

    container: str
    config: dict[str, Any]
    base: dict[str, Any]

    def run(
        self, command: list[str] | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run entrypoint and command in a process of its own, as a container runtime would.

        `buildah run` itself knows environment, user and folder of the image, not its entrypoint.
        """
        environment = [part for pair in variables.items() for part in ("--env", "=".join(pair))]
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
    if os.geteuid() != 0:
        missing("e2e", "building an image needs root")
    for program in ("buildah", "debootstrap"):
        if shutil.which(program) is None:
            missing("e2e", f"building an image needs {program}")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = home / "ascend-diffusion-jobs" / "images"
    cache.mkdir(parents=True, exist_ok=True)
    scratch = tmp_path_factory.mktemp("image")
    storage = scratch / "storage.conf"
    storage.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{cache}/storage"\nrunroot = "{cache}/run"\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_STORAGE_CONF", str(storage))
        yield from built(pip_settings(scratch))


def built(volumes: list[str]) -> Iterator[Image]:
    """Build the image, on a stand-in that is made once for each state of its script."""
    base = f"localhost/cann-stand-in:{hashlib.sha256(BASE_SCRIPT.read_bytes()).hexdigest()[:12]}"
    if not buildah("images", "--quiet", "--filter", f"reference={base}"):
        subprocess.run([str(BASE_SCRIPT), base], check=True)
    tag = "localhost/ascend-diffusion-jobs:test"
    buildah(
        "bud", "--isolation", "chroot", "--layers", "--force-rm", *volumes, "--tag", tag,
        "--build-arg", f"BASE_IMAGE={base}", "--build-arg", "FRAMEWORK=cpu",
        "--build-arg", "REVISION=abc123", str(ROOT),
    )  # fmt: skip
    # The layers of former states are 3 GB each; one in use by another run stays.
    subprocess.run(["buildah", "rmi", "--prune"], capture_output=True, check=False)
    container = buildah("from", "--pull-never", tag)
    try:
        yield Image(container, config_of(tag), config_of(base))
    finally:
        buildah("rm", container)


def config_of(name: str) -> dict[str, Any]:
    """Return the image's configuration as the OCI format has it."""
    found = json.loads(buildah("inspect", "--type", "image", name))["OCIv1"]["config"]
    assert isinstance(found, dict)
    return found


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
