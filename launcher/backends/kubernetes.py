"""Owns speaking to a cluster: find it as kubectl does, try a Job there, create it.

Must not decide anything about a run nor build a manifest. Sends what it is given as it is, so that
`submit` and `--dry-run -o yaml | kubectl create -f -` create the same Job.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import Forbidden, LauncherError, Misconfigured, NameTaken, Unreachable
from launcher.plan import JobPlan

Manifest = Mapping[str, Any]

OLDEST = (1, 31)
"""podFailurePolicy is stable from 1.31 on (KEP 3329); older servers drop it without a word."""
TIMEOUT = (5, 30)
"""Seconds to connect and to wait for an answer; a person waits for both."""
WAYS_OUT = "point --context or KUBECONFIG at a cluster, or run here with --backend local"
# A pod that is refused for these is no reason to refuse the Job: the person may create Jobs without
# being allowed to create pods, and a Job waits until the quota has room.
_TOLERATED = re.compile(r'cannot create resource "pods"|exceeded quota')


@dataclass(frozen=True, slots=True)
class Submitted:
    """A Job that was created."""

    namespace: str
    name: str
    uid: str


class Kubernetes:
    """One cluster and namespace of the kubeconfig, or the cluster this process runs in."""

    def __init__(self, context: str = "", namespace: str = "") -> None:
        """Read the kubeconfig; nothing is sent yet.

        Raises:
            Unreachable: there is no kubeconfig.
            Misconfigured: it cannot be read, or has no such context.
        """
        self._api, found = _connect(context)
        self.namespace = namespace or found
        self.server: str = self._api.configuration.host

    def submit(
        self,
        plan: JobPlan,
        manifest: Manifest,
        prepare: AbstractContextManager[None, bool | None] | None = None,
    ) -> Submitted:
        """Create the Job, once; whatever would refuse it is asked first.

        Args:
            plan: the run.
            manifest: the Job.
            prepare: entered between the asking and the create, for what the Job will need.

        Raises:
            NameTaken: a Job of that name exists.
            Forbidden: the user may not, or a policy refuses the Job or its pods.
            Misconfigured: server too old, no such namespace, or an invalid manifest.
            Unreachable: no server, or none that answers in time.
        """
        self.dry_run_server(manifest)
        with prepare or nullcontext():
            return self._create(plan, manifest)

    def _create(self, plan: JobPlan, manifest: Manifest) -> Submitted:
        try:
            with _translated(self.server, plan.name):
                created = self._post(_JOBS, manifest)["metadata"]
        except Unreachable as error:
            # The request may have got through and only its answer been lost.
            hint = f"see whether it exists: kubectl get job {plan.name}"
            raise Unreachable(error.text, hint) from error
        return Submitted(created["namespace"], created["name"], created["uid"])

    def dry_run_server(self, manifest: Manifest) -> None:
        """Let the server judge the Job, and its pod as well: a Job passes whose pods are refused.

        Raises:
            LauncherError: as for `submit`; nothing is created in any case.
        """
        name = manifest["metadata"]["name"]
        with _translated(self.server, name):
            self._check_version()
            self._post(_JOBS, manifest, dry_run=True)
            try:
                self._post(_PODS, _first_pod(manifest), dry_run=True)
            except _api_exception() as error:
                if error.status != 403 or not _TOLERATED.search(_message(error)):
                    raise

    def _check_version(self) -> None:
        found = self._call("GET", "/version")
        try:  # a minor version may be "33+"
            version = tuple(int(re.sub(r"\D", "", found[part])) for part in ("major", "minor"))
        except (TypeError, KeyError, ValueError) as error:
            raise self._stranger() from error
        if version < OLDEST:
            raise Misconfigured(
                f"cluster {self.server}: is Kubernetes {found['gitVersion']}, which ignores "
                "podFailurePolicy",
                f"a cluster of {OLDEST[0]}.{OLDEST[1]} or newer is needed",
            )

    def _post(self, path: str, body: Manifest, *, dry_run: bool = False) -> Any:
        namespace = body["metadata"].get("namespace") or self.namespace
        query = [("fieldValidation", "Strict")] + [("dryRun", "All")] * dry_run
        return self._call("POST", path.format(namespace=namespace), query, body)

    def _call(
        self, method: str, path: str, query: list[tuple[str, str]] | None = None, body: Any = None
    ) -> Any:
        """Send plain data and return plain data: the client's models would drop and add fields."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        request = self._api.param_serialize(
            method, path, query_params=query, header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        answer = self._api.call_api(*request, _request_timeout=TIMEOUT)
        text = answer.read().decode()
        if not 200 <= answer.status <= 299:
            _api_exception().from_response(http_resp=answer, body=text, data=None)
        try:
            return json.loads(text)
        except ValueError as error:
            raise self._stranger() from error

    def _stranger(self) -> Unreachable:
        what = "what answers there is no Kubernetes API server"
        return Unreachable(f"cluster {self.server}: {what}", WAYS_OUT)


# What the client trips over in a document that is not a kubeconfig; it does not check the shape.
_MALFORMED = (TypeError, KeyError, ValueError, AttributeError)
_JOBS = "/apis/batch/v1/namespaces/{namespace}/jobs"
_PODS = "/api/v1/namespaces/{namespace}/pods"


def _api_exception() -> Any:
    from kubernetes.client.exceptions import ApiException

    return ApiException


def _first_pod(manifest: Manifest) -> dict[str, Any]:
    """Return the pod that the Job controller would make for index 0."""
    template = manifest["spec"]["template"]
    metadata = {"generateName": f"{manifest['metadata']['name']}-0-"}
    if namespace := manifest["metadata"].get("namespace"):
        metadata["namespace"] = namespace
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template.get("metadata", {}), **metadata},
        "spec": template["spec"],
    }


def _connect(context: str) -> tuple[Any, str]:
    """Return a client and the namespace that the context names."""
    from kubernetes import client, config
    from yaml import YAMLError

    settings = client.Configuration()
    settings.retries = False  # three more tries of a dead address would take half a minute
    where = os.environ.get("KUBECONFIG") or "~/.kube/config"
    files = [path for path in _files(where) if path.exists()]
    try:
        if files:
            chosen = context or _current_context(files)
            found = _context(os.pathsep.join(map(str, files)), chosen)
            config.load_kube_config(
                os.pathsep.join(map(str, files)),
                context=chosen,
                client_configuration=settings,
                persist_config=False,
            )
            return client.ApiClient(settings), found.get("namespace") or "default"
        if context or not os.environ.get("KUBERNETES_SERVICE_HOST"):
            raise Unreachable(f"cluster: there is no kubeconfig at {where}", WAYS_OUT)
        config.load_incluster_config(settings)
    except (config.ConfigException, YAMLError, OSError, *_MALFORMED) as error:
        raise Misconfigured(f"kubeconfig {where}: {_line(error)}", WAYS_OUT) from error
    account = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return client.ApiClient(settings), account.read_text("ascii").strip()


def _files(where: str) -> list[Path]:
    return [Path(part).expanduser() for part in where.split(os.pathsep) if part]


def _current_context(files: list[Path]) -> str:
    """Return the current context as kubectl picks it: of the first file that names one."""
    import yaml

    for path in files:
        document = yaml.safe_load(path.read_text("utf-8"))
        if isinstance(document, dict) and document.get("current-context"):
            return str(document["current-context"])
    raise Misconfigured(
        f"kubeconfig {os.pathsep.join(map(str, files))}: has no current context",
        "name one with --context, or `kubectl config use-context`",
    )


def _context(where: str, name: str) -> Mapping[str, Any]:
    from kubernetes.config.kube_config import KubeConfigMerger

    rows = KubeConfigMerger(where).config["contexts"].value
    known = {row["name"]: row.value.get("context") or {} for row in rows}
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise Misconfigured(f"context {name!r}: not in {where}", f"--context, one of: {names}")
    return known[name]


@contextmanager
def _translated(server: str, name: str) -> Iterator[None]:
    """Turn what client and transport raise into our own errors, chained."""
    from urllib3.exceptions import HTTPError

    try:
        yield
    except _api_exception() as error:
        raise _refusal(error, server, name) from error
    except HTTPError as error:
        raise Unreachable(f"cluster {server}: {_transport(error)}", WAYS_OUT) from error


def _refusal(error: Any, server: str, name: str) -> LauncherError:
    """Return what an answer of the API server means."""
    text = _message(error)
    match error.status:
        case 401:
            return Forbidden(
                f"cluster {server}: does not accept the credentials of this context",
                "log in again, or choose another --context",
            )
        case 403:
            return Forbidden(
                f"cluster: {text}", "ask its administrator for the role or the exception"
            )
        case 404 if "namespaces" in text:
            return Misconfigured(f"namespace: {text}", "create it, or choose another with -n")
        case 409:
            return NameTaken(f"run {name!r}: exists", "choose another --name, or cancel that run")
        case 400 | 404 | 422:
            return Misconfigured(f"manifest: {text}", "the base manifest or launcher.toml says so")
        case 0:  # the client's way of telling a TLS failure
            return Unreachable(f"cluster {server}: {text}", WAYS_OUT)
        case _:
            return Unreachable(f"cluster {server}: answered {error.status}: {text}", "try again")


def _message(error: Any) -> str:
    """Return the server's own words on one line."""
    try:
        text = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        text = error.body or error.reason or ""
    return " ".join(str(text).split())


def _transport(error: Exception) -> str:
    """Return the innermost reason of a chain of transport errors, on one line."""
    from urllib3.exceptions import NameResolutionError, NewConnectionError
    from urllib3.exceptions import TimeoutError as TimedOut

    reason = getattr(error, "reason", None) or error
    match reason:
        case NameResolutionError():
            return "its host name is not known"
        case TimedOut() if not isinstance(reason, NewConnectionError):  # which is one, too
            return "no answer in time"
        case _:
            return _line(reason.__cause__ or reason)


def _line(error: object) -> str:
    """Return an error's text on one line, without Python's `<object at 0x...>: `."""
    return re.sub(r"<[^>]*>:? ?", "", " ".join(str(error).split()))
