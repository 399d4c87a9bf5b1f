"""Laws of the Dockerfile that need no build: what tests/e2e/test_image.py proves takes minutes."""

from __future__ import annotations

import ast
import fnmatch
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections import deque
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import jobs

ROOT = Path(__file__).parents[1]
BASE = "quay.io/ascend/cann:8.0.0-910b-ubuntu22.04-py3.11"


def instructions() -> list[tuple[str, str]]:
    """Return (instruction, arguments), continuation lines joined, comments left out."""
    text = (ROOT / "Dockerfile").read_text()
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    pairs = (line.partition(" ") for line in text.splitlines() if line.strip())
    return [(head, rest.strip()) for head, _, rest in pairs]


STEPS = instructions()


def each(instruction: str) -> list[str]:
    return [rest for head, rest in STEPS if head == instruction]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for row in each("ENV") for pair in row.split())


@pytest.fixture(params=["train", "infer"])
def pod(request: pytest.FixtureRequest) -> dict:
    document = yaml.safe_load((ROOT / f"k8s/jobs/{request.param}.yaml").read_text())
    return document["spec"]["template"]["spec"]


def test_the_base_is_an_argument_with_cann_8_as_default() -> None:
    assert STEPS[0] == ("ARG", f"BASE_IMAGE={BASE}")
    assert each("FROM") == ["${BASE_IMAGE}"]
    assert "FRAMEWORK=ascend" in each("ARG")
    assert "MINDSPORE_VERSION=2.5.0" in each("ARG")


def test_the_entrypoint_of_the_base_stays() -> None:
    assert not each("ENTRYPOINT")
    assert json.loads(each("CMD")[0]) == ["python3", "-m", "jobs.runtime"]


def test_the_last_user_is_1000_and_nothing_runs_after_it() -> None:
    heads = [head for head, _ in STEPS]
    assert each("USER") == ["1000:1000"]
    assert not {"RUN", "COPY", "ADD"} & set(heads[heads.index("USER") :])


def test_packages_come_before_the_code() -> None:
    copied = each("COPY")
    assert copied == ["pyproject.toml constraints.txt ./", "jobs /opt/app/jobs"]
    install = next(i for i, (_, rest) in enumerate(STEPS) if "pip install" in rest)
    assert STEPS.index(("COPY", copied[0])) < install < STEPS.index(("COPY", copied[1]))
    assert not each("ADD")


def test_every_installation_is_held_to_the_constraints_and_names_no_index() -> None:
    found = [rest for rest in each("RUN") if "pip install" in rest]
    assert found
    for rest in found:
        assert rest.count("pip install") == rest.count("-c constraints.txt")
        assert "index" not in rest
        assert "trusted" not in rest


def test_the_context_is_what_is_copied() -> None:
    rules = [
        row
        for row in (ROOT / ".dockerignore").read_text().splitlines()
        if row and not row.startswith("#")
    ]
    assert rules[0] == "*"
    assert {row[1:] for row in rules if row.startswith("!")} == {
        source for row in each("COPY") for source in row.split()[:-1]
    }
    assert any(fnmatch.fnmatch("jobs/__pycache__", row) for row in rules[1:])


def test_no_secret_and_no_library_path_is_baked_in() -> None:
    assert "LD_LIBRARY_PATH" not in environment()
    assert "PYTHONPATH" not in environment()
    for head, rest in STEPS:
        if head in ("ARG", "ENV"):
            assert not re.search("(?i)token|password|secret|access_key", rest)


def test_image_and_manifests_agree(pod: dict) -> None:
    (main,) = pod["containers"]
    assert "command" not in main  # it would replace the entrypoint
    assert main["args"][1:] == json.loads(each("CMD")[0])[1:]
    assert main["args"][0] in ("python", "python3")
    assert main["workingDir"] == each("WORKDIR")[-1]
    user = pod["securityContext"]
    assert [f"{user['runAsUser']}:{user['runAsGroup']}"] == each("USER")
    given = {row["name"]: row.get("value") for row in main["env"]}
    for variable in ("HOME", "ASDOPS_LOG_PATH"):
        assert environment()[variable] == given[variable]


def test_labels() -> None:
    labels = " ".join(each("LABEL"))
    assert f'org.opencontainers.image.version="{jobs.__version__}"' in labels
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == jobs.__version__
    assert f'image.licenses="{project["license"]}"' in labels
    assert 'image.base.name="${BASE_IMAGE}"' in labels


def requirements(*extras: str) -> set[str]:
    """Run the lines of the Dockerfile that choose the packages."""
    (step,) = (rest for rest in each("RUN") if "requirements.txt" in rest)
    code = re.search(r'python -c "(.*?)" "\$\{extras\}"', step, re.DOTALL)
    assert code is not None
    listed = subprocess.run(
        [sys.executable, "-c", code.group(1), " ".join(extras)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(listed.stdout.splitlines())


def test_nothing_of_the_launcher_is_chosen() -> None:
    chosen = {Requirement(row).name for row in requirements("jobs", "cpu")}
    assert {"boto3", "pydantic", "mindone", "mindspore"} <= chosen
    assert not chosen & {"kubernetes", "typer", "pytest"}
    assert "mindspore" not in {Requirement(row).name for row in requirements("jobs")}


def test_what_the_jobs_import_is_chosen() -> None:
    names = {
        node.names[0].name if isinstance(node, ast.Import) else node.module or ""
        for path in (ROOT / "jobs").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    third = {row.partition(".")[0] for row in names} - set(sys.stdlib_module_names) - {"jobs", ""}
    assert "mindspore" in third
    owners = importlib.metadata.packages_distributions()
    unknown = {row for row in third if row not in owners}
    if "mindspore" in unknown:
        pytest.skip("the jobs' packages are not installed here")
    needed = {canonicalize_name(owner) for row in third for owner in owners[row]}
    installed, queue = set(), deque(map(Requirement, requirements("jobs", "cpu")))
    while queue:
        found = canonicalize_name(queue.popleft().name)
        if found in installed:
            continue
        installed.add(found)
        queue += [
            row
            for row in map(Requirement, importlib.metadata.requires(found) or [])
            if row.marker is None or row.marker.evaluate({"extra": ""})
        ]
    assert needed <= installed
