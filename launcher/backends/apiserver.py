"""Owns the road to an API server: find it as kubectl does, send plain data, read plain data.

Must not know what a run is, nor what an error means (refusals.py): 404 and 409 of a request are the
caller's to name.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.backends.refusals import WAYS_OUT, api_exception, line, message_of, translated
from launcher.errors import Misconfigured, Unreachable

__all__ = ["WAYS_OUT", "ApiServer", "api_exception", "message_of", "translated"]

Query = Sequence[tuple[str, str]]

DELETE_TRIES = 3
TIMEOUT = (5, 30)
"""Seconds to connect and to wait for an answer; a person waits for both."""
_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
_TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1,application/json"


class ApiServer:
    """One API server, as one user, and the namespace that is meant."""

    def __init__(self, context: str = "", namespace: str = "") -> None:
        """Read the kubeconfig; nothing is sent yet.

        Raises:
            Unreachable: there is no kubeconfig.
            Misconfigured: it cannot be read, or has no such context.
        """
        self._api, found, self.context = _connect(context)
        self.namespace = namespace or found
        self.host: str = self._api.configuration.host

    def get(self, path: str, query: Query = (), *, accept: str = "application/json") -> Any:
        """Return what is at a path, such as `/api/v1/namespaces/n/pods`.

        Raises:
            ApiException: the server answered 400 or more.
            HTTPError: of urllib3, nobody answered.
            Unreachable: what answered is no API server.
        """
        return self._call("GET", path, query, accept=accept)

    def pages(
        self, path: str, query: Query = (), *, limit: int = 500, table: bool = False
    ) -> Iterator[Any]:
        """Yield a list's answers, `limit` objects each; as `table` has them if that is asked for.

        Raises:
            As `get`; also when the list grew too old in the middle (410), which a caller repeats.
        """
        more = ""
        while True:
            marks = [("limit", str(limit)), *([("continue", more)] if more else ())]
            page = self.get(path, [*query, *marks], accept=_TABLE if table else "application/json")
            yield page
            more = page["metadata"].get("continue", "")
            if not more:
                return

    def metadata(self, path: str, query: Query = ()) -> Any:
        """Return a list of metadata only: a tenth of the bytes."""
        return self.get(path, query, accept=_METADATA)

    def table(self, path: str, query: Query = ()) -> Any:
        """Return a list as the table that kubectl prints."""
        return self.get(path, query, accept=_TABLE)

    def post(self, path: str, body: Mapping[str, Any], query: Query = ()) -> Any:
        """Create an object, with strict field validation; raises as `get`."""
        return self._call("POST", path, [("fieldValidation", "Strict"), *query], body)

    def patch(self, path: str, body: Mapping[str, Any], query: Query = ()) -> Any:
        """Merge into an object (RFC 7386); raises as `get`."""
        return self._call("PATCH", path, query, body, sent="application/merge-patch+json")

    def delete(self, path: str, body: Mapping[str, Any]) -> None:
        """Delete an object; the body is its DeleteOptions.

        It is asked for again where the answer is lost, so that the body has to name a UID.

        Raises:
            As `get`, when it is not there at the first try, or all tries failed.
        """
        from urllib3.exceptions import HTTPError

        for left in reversed(range(DELETE_TRIES)):
            try:
                self._call("DELETE", path, (), body)
                return
            except api_exception() as error:
                if error.status == 404 and left < DELETE_TRIES - 1:
                    return  # a try before, whose answer was lost
                if not left or (error.status < 500 and error.status != 429):
                    raise
            except (HTTPError, Unreachable):
                if not left:
                    raise
            time.sleep(1)

    @contextmanager
    def stream(self, path: str, query: Query, timeout: tuple[float, float | None]) -> Iterator[Any]:
        """Open an answer that goes on, such as a log or a watch; yield urllib3's response.

        Args:
            path: what is read.
            query: its query.
            timeout: seconds to connect, and between two pieces (None: for ever).

        Raises:
            As `get`; while reading, urllib3's HTTPError.
        """
        answer = self._send("GET", path, query, None, "*/*", "application/json", timeout)
        raw = getattr(answer, "response", answer)
        try:
            yield raw
        finally:
            raw.close()

    def _call(
        self,
        method: str,
        path: str,
        query: Query,
        body: Any = None,
        *,
        accept: str = "application/json",
        sent: str = "application/json",
    ) -> Any:
        """Send plain data and return plain data: the client's models would drop and add fields."""
        answer = self._send(method, path, query, body, accept, sent, TIMEOUT)
        try:
            found = json.loads(answer.read())
        except (ValueError, RecursionError) as error:
            raise self.stranger() from error
        if not isinstance(found, dict):
            raise self.stranger()
        return found

    def _send(
        self,
        method: str,
        path: str,
        query: Query,
        body: Any,
        accept: str,
        sent: str,
        timeout: tuple[float, float | None],
    ) -> Any:
        headers = {"Accept": accept, "Content-Type": sent}
        request = self._api.param_serialize(
            method, path, query_params=list(query), header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        answer = self._api.call_api(*request, _request_timeout=timeout)
        if not 200 <= answer.status <= 299:
            text = answer.read().decode(errors="replace")
            api_exception().from_response(http_resp=answer, body=text, data=None)
        return answer

    def stranger(self) -> Unreachable:
        """Return the error for an answer that no API server gives."""
        what = "what answers there is no Kubernetes API server"
        return Unreachable(f"cluster {self.host}: {what}", WAYS_OUT)


# What the client trips over in a document that is not a kubeconfig; it does not check the shape.
_MALFORMED = (TypeError, KeyError, ValueError, AttributeError)


def _connect(context: str) -> tuple[Any, str, str]:
    """Return a client, the namespace that the context names, and the context's own name."""
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
            return client.ApiClient(settings), found.get("namespace") or "default", chosen
        if context or not os.environ.get("KUBERNETES_SERVICE_HOST"):
            raise Unreachable(f"cluster: there is no kubeconfig at {where}", WAYS_OUT)
        config.load_incluster_config(settings)
    except (config.ConfigException, YAMLError, OSError, *_MALFORMED) as error:
        raise Misconfigured(f"kubeconfig {where}: {line(error)}", WAYS_OUT) from error
    account = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return client.ApiClient(settings), account.read_text("ascii").strip(), "in-cluster"


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
