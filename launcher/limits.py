"""Owns what a run needs of its place, and refuses what lacks it: image, store, memory, a CPU. Pure.

Must not decide anything else about a run (plan.py), nor warn of what may work (advice.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from launcher import output, sizes
from launcher.errors import Misconfigured, Usage
from launcher.settings import Target

if TYPE_CHECKING:  # brings pydantic
    from jobs.specs import Spec

SPEC_BYTES = 100 * 1024
"""Largest JOB_SPEC: Linux limits one string of the environment to 128 KiB (MAX_ARG_STRLEN)."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Grammar of the distribution project's reference package: host, path, tag, digest.
_IMAGE = re.compile(
    r"(?:(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:[._/]|__|-+)[a-z0-9]+)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(?:@[A-Za-z][A-Za-z0-9+._-]*:[0-9a-fA-F]+)?"
)


def check_local(spec: Spec, target: Target, npus: int, nodes: int, cores: int) -> None:
    """Check that this machine can run it.

    Raises:
        Usage: more nodes or workers than it has, or a precision that no CPU has.
        Misconfigured: the store names no bucket.
    """
    _check_bucket(target.store)
    if nodes != 1:
        raise Usage(f"--nodes {nodes}: the local backend is one node", "--nodes 1")
    if npus < 1:
        raise Usage(f"--npus {npus}: a run needs a worker", "--npus 1")
    most = max(8, cores)
    if npus > most:
        # Each worker is a process of about 2 GB; a slip of the finger should not cost a laptop.
        raise Usage(f"--npus {npus}: more workers than this machine can run", f"--npus {most}")
    if spec.precision == "bf16":
        raise Usage(
            "--precision bf16: MindSpore has no bfloat16 on a CPU", "--precision fp32, or fp16"
        )


def check_places(target: Target) -> None:
    """Check that pods can be told an image and a store.

    Raises:
        Misconfigured: one is missing, or is no name of such a thing.
    """
    _check_bucket(target.store)
    for key, what in (("image", "the image of the jobs"), ("store", "the object store")):
        if not getattr(target, key):
            raise Misconfigured(
                f"{key}: {what} is not set",
                f"{key} in launcher.toml, LAUNCHER_{key.upper()} or --{key}",
            )
    if not _IMAGE.fullmatch(target.image):
        raise Misconfigured(
            f"image {target.image!r}: is no name of an image",
            "registry/name in lower case, with tag or digest: registry/name:tag",
        )
    scheme, separator, rest = target.store.partition("://")
    if not separator or scheme not in ("s3", "file") or (scheme == "file" and rest[:1] != "/"):
        raise Misconfigured(
            f"store {target.store!r}: a pod has no such place",
            "s3://bucket/prefix, or file:///path of a volume that the base manifest mounts",
        )


def _check_bucket(store: str) -> None:
    scheme, _, rest = store.partition("://")
    if scheme == "s3" and not _BUCKET.fullmatch(rest.partition("/")[0]):
        raise Misconfigured(f"store {store!r}: names no bucket", "s3://bucket/prefix")


def check_memory(spec: Spec, target: Target, npus: int) -> None:
    """Check that a pod gets the memory that it cannot do without.

    Raises:
        Misconfigured: it does not; the hint has the least that will do.
    """
    given, need = target.memory_per_npu_gib * npus, sizes.memory_gib(spec, npus)
    if given < need:
        raise Misconfigured(
            f"memory_per_npu_gib {target.memory_per_npu_gib}: {given} GiB for "
            f"{output.counted(npus, 'NPU')}, and this run needs {need}",
            f"memory_per_npu_gib = {-(-need // npus)}",
        )


def check_size(spec_json: str) -> None:
    """Check that the spec fits into a pod's environment.

    Raises:
        Misconfigured: it does not.
    """
    size = len(spec_json.encode())
    if size > SPEC_BYTES:
        raise Misconfigured(
            f"spec: {size // 1024} KiB as JSON, and a pod's environment takes {SPEC_BYTES // 1024}",
            "split the prompt file into several runs",
        )
