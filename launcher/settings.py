"""Owns where a run goes: launcher.toml, LAUNCHER_* and flags -> Target, with provenance.

Must not hold a hyper-parameter (those are the spec's) nor a credential (those are boto3's chain
or a Kubernetes Secret).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from jobs.access import ADDRESSING, CHECKSUMS
from launcher import names
from launcher.errors import Misconfigured, NotFound

FILE = "launcher.toml"
PREFIX = "LAUNCHER_"
CONFIG_VARIABLE = "LAUNCHER_CONFIG"
BACKENDS = ("kubernetes", "local")
KUEUE = "kueue"
VOLCANO = "volcano"
QUEUE_ENGINES = ("", KUEUE, VOLCANO)
DEFAULT = "default"
"""Provenance of a value that nobody set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where and how big; every value has a default, none is a hyper-parameter."""

    backend: str = "kubernetes"
    """`kubernetes`, or `local`: the container's own programs as processes on this machine's CPU."""
    context: str = ""
    """Context of the kubeconfig; empty means its current one."""
    namespace: str = ""
    """Namespace of the Jobs; empty means the context's own."""
    image: str = ""
    """Image of the jobs, with tag or digest."""
    image_pull_secret: str = ""
    """Secret of type kubernetes.io/dockerconfigjson for the image's registry."""
    store: str = ""
    """Root of the object store: s3://bucket/prefix, file:///path or a path."""
    store_secret: str = ""
    """Secret whose keys (AWS_ACCESS_KEY_ID, ...) become the job's environment."""
    store_endpoint: str = ""
    """Server of an s3:// store as the pods reach it, https://host[:port]; empty means AWS's."""
    store_endpoint_here: str = ""
    """The same store as this machine reaches it; empty means as the pods do."""
    store_region: str = ""
    """Region that requests to the store are signed for; empty means AWS_REGION or a profile's."""
    store_addressing: str = "auto"
    """path (endpoint/bucket), virtual (bucket.endpoint), or auto: by the endpoint's host."""
    store_checksum: str = "auto"
    """What proves an upload: sha256, md5, none, or auto: by the endpoint's host."""
    hub_secret: str = ""
    """Secret whose keys (HF_TOKEN, HF_ENDPOINT) become the job's environment."""
    hub_endpoint: str = ""
    """HF_ENDPOINT of the job: a mirror of the model and data hub."""
    server: str = "module-910b-8"
    """Server type, the node label `accelerator-type`; decides the legal NPU counts."""
    plugin: str = "mindcluster"
    """Device plugin: mindcluster, cce or hami; decides the name of the NPU resource."""
    resource: str = ""
    """Name of the NPU resource; empty means the plugin's own."""
    scheduler: str = ""
    """schedulerName of the pods; empty means the cluster's default."""
    service_account: str = ""
    """Service account of the pods; empty means the namespace's default, never its token."""
    queue: str = ""
    """Queue that runs wait in: a LocalQueue of Kueue, or a Queue of Volcano."""
    queue_engine: str = ""
    """Whose queue that is: kueue or volcano; volcano places runs over several nodes as gangs."""
    priority_class: str = ""
    """PriorityClass of the pods, and so of the run in its queue."""
    workload_priority: str = ""
    """WorkloadPriorityClass of Kueue: the place in the queue alone, not the pods' priority."""
    cpu_per_npu: int = 16
    """CPU cores requested per NPU."""
    memory_per_npu_gib: int = 64
    """Memory requested per NPU in GiB; the shared memory is taken from it."""
    data_gib: int = 10
    """Room on the node for data set and encoded pictures, GiB."""
    retries: int = 3
    """Counted retries per pod index; free retries (exit 75, disruptions) are not counted."""
    ttl_hours: int = 168
    """Hours a finished Job stays in the cluster; results stay in the store."""
    stall_minutes: int = 45
    """A worker silent for longer is killed; graph compilation is silent for up to 30."""
    store_deadline_minutes: int = 30
    """How long a store that is away is retried, then 69; 1 for a folder here unless set."""
    rendezvous_minutes: int = 30
    """How long the pods of a run over several nodes wait for each other before they fail."""
    upload_mib_per_second: int = 100
    """Rate to the store that the grace period of a pod is computed with."""
    max_grace_seconds: int = 0
    """Longest grace period that the cluster keeps, as on spot nodes; 0 means any."""
    threads: int = 0
    """Local backend: CPU threads per worker; 0: the cores over the workers, and 1 to paint."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A target and, for each of its fields, the place its value comes from."""

    target: Target
    origins: Mapping[str, str]
    """Field -> `default`, the path of launcher.toml, `LAUNCHER_NAME` or `--flag`."""

    def is_set(self, field: str) -> bool:
        """Return whether somebody chose the value."""
        return self.origins[field] != DEFAULT


def load(
    flags: Mapping[str, str | int],
    *,
    config: Path | None = None,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Return the target: defaults < launcher.toml < LAUNCHER_* < flags.

    Args:
        flags: field -> value, of the flags that were given.
        config: the file to read; none means LAUNCHER_CONFIG, or the nearest launcher.toml in `cwd`
            or above.
        cwd: where the search starts; none means the working directory.
        environment: variables; none means the process's own.

    Raises:
        NotFound: the named file does not exist.
        Misconfigured: an unknown key or variable, a value of the wrong type, or a credential.
    """
    environment = os.environ if environment is None else environment
    if config is None and environment.get(CONFIG_VARIABLE):
        config = Path(environment[CONFIG_VARIABLE])
    path = config or _nearest(cwd or Path.cwd())
    values: dict[str, str | int] = {}
    origins = dict.fromkeys(_DEFAULTS, DEFAULT)

    def force(key: str, value: object, origin: str, where: str) -> None:
        values[key] = _checked(key, value, where)
        origins[key] = origin

    for key, value in (_read(path) if path else {}).items():
        where = f"{path}: {key}"
        if key not in _DEFAULTS:
            raise Misconfigured(f"{where}: no such key", near(key, _DEFAULTS))
        force(key, value, str(path), where)
    for name, text in environment.items():
        # An empty variable is an unset one, as shells and manifests use it.
        if name.startswith(PREFIX) and name != CONFIG_VARIABLE and text:
            key = name.removeprefix(PREFIX).lower()
            if key not in _DEFAULTS:
                known = [PREFIX + field.upper() for field in _DEFAULTS]
                raise Misconfigured(f"{name}: no such variable", near(name, known))
            force(key, _number(text) if isinstance(_DEFAULTS[key], int) else text, name, name)
    for key, value in flags.items():
        flag = _FLAGS.get(key, f"--{key.replace('_', '-')}")
        force(key, value, flag, flag)
    return Settings(Target(**values), origins)  # type: ignore[arg-type]  # checked one by one


def example() -> str:
    """Return a commented launcher.toml that holds every default."""
    import json

    rows = [
        "# launcher.toml: where runs go. Found in the working directory or above, or named by",
        f"# --config or {CONFIG_VARIABLE}. LAUNCHER_<KEY> in the environment wins over it, a flag",
        "# over both.",
        "# Every value below is the default. Credentials have no place here: see store_secret.",
    ]
    notes = _docstrings()
    for key, value in _DEFAULTS.items():
        # A TOML basic string and a JSON string agree on all that a default of ours may hold.
        rows += ["", f"# {notes[key]}", f"{key} = {json.dumps(value)}"]
    return "\n".join(rows) + "\n"


def near(word: str, known: Iterable[str]) -> str:
    """Return a hint that names what `word` was probably meant to be, or all there is."""
    import difflib

    words = list(known)
    found = difflib.get_close_matches(word, words, n=3)
    return f"did you mean {' or '.join(found)}?" if found else f"there are {', '.join(words)}"


_DEFAULTS: dict[str, str | int] = asdict(Target())
_MAY_BE_ZERO = ("retries", "ttl_hours", "threads", "max_grace_seconds")
_CHOICES = {
    "backend": BACKENDS,
    "store_addressing": ADDRESSING,
    "store_checksum": CHECKSUMS,
    "queue_engine": QUEUE_ENGINES,
}
_FLAGS = {"priority_class": "--priority"}
"""Flags that are not called as their field."""
_OBJECTS = ("namespace", "service_account", "image_pull_secret", "store_secret", "hub_secret")
_ENDPOINTS = ("store_endpoint", "store_endpoint_here")
_REGION = re.compile(r"[A-Za-z0-9-]*")


def _nearest(folder: Path) -> Path | None:
    for place in (folder, *folder.parents):
        # Whatever it is: a folder of that name is told, not passed over.
        if os.path.lexists(place / FILE):
            return place / FILE
    return None


def _read(path: Path) -> dict[str, object]:
    import tomllib

    hint = "launcher config --example prints one"
    try:
        with path.open("rb") as handle:
            return tomllib.load(handle)
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file", hint) from error
    except OSError as error:
        raise Misconfigured(f"{path}: cannot be read: {error.strerror}", hint) from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are both
        raise Misconfigured(f"{path}: is not TOML: {error}", hint) from error


def _number(text: str) -> int | str:
    return int(text) if text.strip().lstrip("-").isdecimal() else text


def _checked(key: str, value: object, where: str) -> str | int:
    if isinstance(_DEFAULTS[key], int):
        least = 0 if key in _MAY_BE_ZERO else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise Misconfigured(f"{where}: wants a whole number from {least}, not {value!r}")
        return value
    if not isinstance(value, str):
        raise Misconfigured(f"{where}: wants text in quotes, not {value!r}")
    if _has_credentials(value):  # and is not repeated here, since messages end up in logs
        raise Misconfigured(
            f"{where}: holds a user name or password",
            "credentials come from the environment, or from the Secret that store_secret names",
        )
    if key in _CHOICES and value not in _CHOICES[key]:
        what = key.removeprefix("store_").replace("_", " ")
        known = filter(None, _CHOICES[key])
        raise Misconfigured(f"{where}: no such {what} {value!r}", near(value, known))
    if key in _OBJECTS and value:
        names.check_object(value, where, dots=key != "namespace")
    if key in _ENDPOINTS and value:
        return _endpoint(value, where)
    if key == "store_region" and not _REGION.fullmatch(value):
        raise Misconfigured(f"{where}: {value!r} is no name of a region", "for example us-east-1")
    return value


def _endpoint(value: str, where: str) -> str:
    """Return an address of a server, without the slash that people end it with."""
    try:
        parts = urlsplit(value)
        # Asked for by name, since both are parsed only then.
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, brackets without an address in them
        good = False
    if not good or not value.isprintable() or " " in value:
        raise Misconfigured(
            f"{where}: {value!r} is no address of a server", "https://host or https://host:port"
        )
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise Misconfigured(
            f"{where}: {value!r} names more than a server",
            f"{parts.scheme}://{parts.netloc}; bucket and prefix belong to store",
        )
    return f"{parts.scheme}://{parts.netloc}"


def _has_credentials(value: str) -> bool:
    _, separator, rest = value.partition("://")
    return bool(separator) and "@" in rest.split("/")[0]


def _docstrings() -> dict[str, str]:
    """Return the text under each field of Target; Python keeps it in the source only."""
    import ast
    import inspect

    (target,) = ast.parse(inspect.getsource(Target)).body
    assert isinstance(target, ast.ClassDef)
    notes: dict[str, str] = {}
    for field, note in zip(target.body, target.body[1:], strict=False):
        match field, note:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=text)):
                notes[name] = str(text)
    return notes
