"""Builds the image with buildah on a stand-in for the CANN base; layers are kept between runs.

They and the stand-in lie in $XDG_CACHE_HOME/ascend-diffusion-jobs (or ~/.cache/...).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[2]
BASE_SCRIPT = Path(__file__).with_name("base.sh")
TAG = "localhost/ascend-diffusion-jobs:test"
TE_NEEDS = ("attrs", "cloudpickle", "decorator", "ml-dtypes", "psutil", "scipy", "tornado")
"""What CANN 8.0's te says it requires."""


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


@contextmanager
def storage(scratch: Path, missing: Callable[[str, str], NoReturn]) -> Iterator[Path]:
    """Make buildah use the cache's own storage, which is yielded, until the block ends."""
    if os.geteuid() != 0:
        missing("e2e", "building an image needs root")
    for program in ("buildah", "debootstrap"):
        if shutil.which(program) is None:
            missing("e2e", f"building an image needs {program}")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = home / "ascend-diffusion-jobs" / "images"
    cache.mkdir(parents=True, exist_ok=True)
    config = scratch / "storage.conf"
    config.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{cache}/storage"\nrunroot = "{cache}/run"\n'
    )
    engine = scratch / "containers.conf"
    engine.write_text('[engine]\ncompression_format = "zstd"\ncompression_level = 1\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_STORAGE_CONF", str(config))
        patch.setenv("CONTAINERS_CONF", str(engine))
        patch.setenv("BUILDAH_ISOLATION", "chroot")
        patch.setenv("BUILDAH_LAYERS", "true")  # as the README says
        yield cache / "storage"


def arguments(scratch: Path) -> tuple[str, list[str]]:
    """Return the stand-in for the base, made once, and what a build for the CPU on it is told."""
    base = f"localhost/cann-stand-in:{hashlib.sha256(BASE_SCRIPT.read_bytes()).hexdigest()[:12]}"
    if not buildah("images", "--quiet", "--filter", f"reference={base}"):
        subprocess.run([str(BASE_SCRIPT), base], check=True)
    words = {"BASE_IMAGE": base, "FRAMEWORK": "cpu", "REVISION": "abc123"}
    told = [part for row in words.items() for part in ("--build-arg", "=".join(row))]
    return base, [*told, *pip_settings(scratch)]


def build(scratch: Path) -> str:
    """Build the image as TAG; return its base."""
    base, told = arguments(scratch)
    buildah("build", "--layers", "--force-rm", *told, "--tag", TAG, str(ROOT))
    prune()
    return base


def build_for_npus(scratch: Path, base: str) -> str:
    """Build what ships, with empty wheels in place of MindSpore's and CANN's; return its name.

    They lie where they do in the real base and hold nothing; they ask for what te does, and
    for what this machine's MindSpore does.
    """
    made, name = "localhost/cann-stand-in:wheels", "localhost/ascend-diffusion-jobs:npu"
    lib = "/usr/local/Ascend/ascend-toolkit/latest/lib64/"
    container = buildah("from", "--pull-never", base)
    try:
        for package, version, needs in (("te", "0.4.0", TE_NEEDS), ("hccl", "0.1.0", ())):
            buildah("copy", container, str(wheel(scratch, package, version, needs=needs)), lib)
        tag = f"cp311-cp311-linux_{os.uname().machine}"
        needs = importlib.metadata.requires("mindspore") or ()
        found = wheel(scratch, "mindspore", "2.5.0", tag, needs)
        buildah("copy", container, str(found), f"/opt/{found.name}")
        buildah("commit", "--quiet", container, made)
    finally:
        buildah("rm", container)
    words = {"BASE_IMAGE": made, "MINDSPORE_WHEEL": f"/opt/{found.name}"}
    told = [part for row in words.items() for part in ("--build-arg", "=".join(row))]
    buildah("build", *told, *pip_settings(scratch), "--tag", name, str(ROOT))
    return name


def wheel(
    folder: Path, name: str, version: str, tag: str = "py3-none-any", needs: Sequence[str] = ()
) -> Path:
    """Write a wheel with an empty package; return its path."""
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    about = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "")
        archive.writestr(f"{about}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


def prune() -> None:
    """Remove the layers of former states, 3 GB each; one in use by another run stays."""
    subprocess.run(["buildah", "rmi", "--prune"], capture_output=True, check=False)


def config_of(name: str) -> dict[str, Any]:
    """Return the image's configuration as the OCI format has it."""
    found = json.loads(buildah("inspect", "--type", "image", name))["OCIv1"]["config"]
    assert isinstance(found, dict)
    return found


def layer_bytes(graph: Path, name: str) -> list[int]:
    """Return the uncompressed size of each layer of an image, the base's first."""
    image = json.loads(buildah("inspect", "--type", "image", name))["FromImageID"]
    images = json.loads((graph / "overlay-images" / "images.json").read_bytes())
    layers = {
        row["id"]: row
        for row in json.loads((graph / "overlay-layers" / "layers.json").read_bytes())
    }
    at = next(row["layer"] for row in images if row["id"] == image)
    sizes: list[int] = []
    while at:
        sizes.insert(0, int(layers[at]["diff-size"]))
        at = layers[at].get("parent", "")
    return sizes
