"""The scripts of .ci where they end early; to their end they need a network, root or an hour."""

from __future__ import annotations

import ast
import os
import re
import shutil
import socket
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def script(name: str, **environment: str) -> tuple[int, list[str]]:
    """Run a script of .ci; return its exit code and all lines that it prints."""
    ended = subprocess.run(
        [ROOT / ".ci" / name], env={**os.environ, "no_proxy": "*", **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=60,
    )  # fmt: skip
    return ended.returncode, ended.stdout.splitlines()


@pytest.fixture
def answering(request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the address of a server that gives one answer, a code and a body, to every question."""
    code, body = request.param

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join()


def test_an_audit_where_nobody_answers_says_so_and_passes() -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        code, lines = script("audit", OSV_URL=f"http://127.0.0.1:{taken.getsockname()[1]}/")
    assert code == 0, lines
    assert lines[-1].startswith("audit: nothing was audited: http://127.0.0.1:")


@pytest.mark.parametrize(
    "answering", [(400, b"{}"), (503, b""), (200, b"<html>log in</html>"), (200, b"[]")],
    indirect=True,
)  # fmt: skip
def test_an_audit_that_is_not_answered_properly_fails(answering: str) -> None:
    code, lines = script("audit", OSV_URL=answering)
    assert code == 1, lines
    assert lines[-1].startswith(f"audit: {answering} cannot be asked (")


@pytest.mark.parametrize("address", ["notaurl", "osv://database", "https://"])
def test_an_audit_of_an_address_that_is_none_fails(address: str) -> None:
    code, lines = script("audit", OSV_URL=address)
    assert code == 1, lines
    assert lines[-1].startswith(f"audit: {address} cannot be asked (")
    assert "Traceback" not in "\n".join(lines)


def test_what_is_pinned_elsewhere_is_audited_as_well() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        _, lines = script("audit", OSV_URL=f"http://127.0.0.1:{taken.getsockname()[1]}/")
    words = {word for line in lines for word in line.split()}
    dockerfile = (ROOT / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = re.search("MINDSPORE_VERSION=([0-9.]+)", dockerfile)
    assert version
    assert f"mindspore=={version.group(1)}" in words
    assert set(project["optional-dependencies"]["cpu"]) <= words
    assert set(re.findall(r"[a-z]+==[0-9.]*[0-9]", dockerfile)) <= words


def test_the_exceptions_of_the_audit_rest_on_what_the_jobs_use() -> None:
    """Of transformers CLIP alone, and nothing of MindSpore's data sets or of OpenCV."""
    modules = [ast.parse(path.read_text()) for path in (ROOT / "jobs").rglob("*.py")]
    nodes = [node for module in modules for node in ast.walk(module)]
    taken = {
        (node.module, alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    whole = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    of_transformers = {name for module, name in taken if re.match(r"(mindone\.)?transf", module)}
    assert of_transformers == {
        "CLIPTokenizer", "CLIPTextConfig", "CLIPTextModel", "CLIPTextModelWithProjection",
    }  # fmt: skip
    assert {row for row in whole if "transformers" in row} <= {"mindone.transformers"}
    modules_of = {*whole, *(f"{module}.{name}" for module, name in taken)}
    assert not [row for row in modules_of if re.match(r"cv2|torch|mindspore\.dataset", row)]
    words = {node.attr for node in nodes if isinstance(node, ast.Attribute)} | {
        node.arg for node in nodes if isinstance(node, ast.keyword)
    }
    assert "trust_remote_code" not in words


def test_e2e_without_pytest_says_so_before_it_installs_anything(tmp_path: Path) -> None:
    for program in ("bash", "dirname", "readlink"):  # no apt-get: a test installs nothing
        (tmp_path / program).symlink_to(shutil.which(program) or "")
    given = {"PATH": str(tmp_path), "KUBEBUILDER_ASSETS": "/", "NODES_COMMAND": "/"}
    ended = subprocess.run(
        [tmp_path / "bash", ROOT / ".ci" / "e2e"], env=given, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=60,
    )  # fmt: skip
    (line,) = ended.stdout.splitlines()
    assert ended.returncode == 1
    assert line.startswith("e2e: there is no pytest on PATH: ")
