"""The API server of the session's cluster as something that is killed and started again."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml


class ApiServerProcess:
    """The kube-apiserver that the cluster's fixture started, found by its folder."""

    def __init__(self, cluster: Any) -> None:
        self._folder = cluster.kubeconfig.parent
        self._pid, self._command = next(
            (int(entry.name), words)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit()
            and (words := _words(entry))[:1]
            and Path(words[0]).name == "kube-apiserver"
            and f"--cert-dir={self._folder}" in words
        )
        self._child: subprocess.Popen[bytes] | None = None

    @contextmanager
    def down(self) -> Iterator[None]:
        """Kill it as a crash would; afterwards it is there again."""
        self._kill()
        try:
            yield
        finally:
            self._start()

    def _kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        if self._child:
            self._child.wait()

    def _start(self) -> None:
        """Start it again on the same port, and wait until it is ready."""
        document = yaml.safe_load((self._folder / "kubeconfig").read_text())
        row = document["clusters"][0]["cluster"]
        token = document["users"][0]["user"]["token"]
        context = ssl.create_default_context(cafile=row["certificate-authority"])
        request = urllib.request.Request(
            f"{row['server']}/readyz", headers={"Authorization": f"Bearer {token}"}
        )
        deadline = time.monotonic() + 60
        self._spawn()
        while True:
            try:
                urllib.request.urlopen(request, timeout=5, context=context).close()
                return
            except (OSError, urllib.error.URLError):
                if time.monotonic() > deadline:
                    pytest.fail("the API server did not come up again", pytrace=False)
                time.sleep(0.1)
            if self._child and self._child.poll() is not None:
                self._spawn()  # the port was not free yet: threads die one by one

    def _spawn(self) -> None:
        with (self._folder / "kube-apiserver-again.log").open("ab") as log:
            self._child = subprocess.Popen(
                self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self._pid = self._child.pid

    def end(self) -> None:
        """End the one that was started again; the first belongs to the cluster's fixture."""
        if self._child:
            self._child.kill()  # asked politely, it would wait for whoever watches
            self._child.wait()


def _words(entry: Path) -> list[str]:
    try:
        return (entry / "cmdline").read_bytes().decode().rstrip("\0").split("\0")
    except OSError:
        return []
