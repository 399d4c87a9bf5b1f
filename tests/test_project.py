"""Laws of the whole project: sizes, who imports whom, pins, what never stands in a file."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
MODULES = sorted([*(ROOT / "jobs").rglob("*.py"), *(ROOT / "launcher").rglob("*.py")])
CONTRACT = {
    "access", "adapters", "commits", "documents", "errors", "inferspec", "layout", "prompts",
    "recipes", "retention", "s3", "s3faults", "specs", "stores", "tensors", "transfers",
}  # fmt: skip
"""The half of jobs/ that the launcher reads too: no framework behind any of it."""
OF_CLUSTER = {
    "backends/apiserver.py", "backends/podlogs.py", "backends/refusals.py", "schema.py",
}  # fmt: skip
"""The modules of launcher/ that may import the Kubernetes client."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def pins() -> dict[str, str]:
    rows = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(row.split("==") for row in rows if not row.startswith("#"))


def imports(path: Path) -> Iterator[str]:
    """Yield what a module imports, dotted; `from jobs import layout` is `jobs.layout`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = node.module in ("jobs", "launcher")
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names if inner else [node.module]


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    paths = [ROOT / row for row in listed.stdout.split("\0") if row]
    return [path for path in paths if path.is_file()]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_has_at_most_300_lines_and_a_function_60(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_code_is_ascii_and_rooms_are_named_for_their_subject(path: Path) -> None:
    assert path.read_text().isascii()
    assert path.stem not in ("utils", "util", "helpers", "common", "misc", "manager")


def test_the_launcher_sees_only_the_contract_half_of_jobs() -> None:
    seen = {
        (name(path), found.split(".")[1])
        for path in (ROOT / "launcher").rglob("*.py")
        for found in imports(path)
        if found.startswith("jobs.")
    }
    assert seen, "the law looked at nothing"
    assert not {pair for pair in seen if pair[1] not in {*CONTRACT, "__version__"}}


def test_only_the_modules_of_the_cluster_import_its_client() -> None:
    seen = {
        str(path.relative_to(ROOT / "launcher"))
        for path in (ROOT / "launcher").rglob("*.py")
        if any(found.split(".")[0] == "kubernetes" for found in imports(path))
    }
    assert seen
    assert seen <= OF_CLUSTER


def test_every_constraint_is_one_pin_without_an_address() -> None:
    rows = [
        row
        for row in (ROOT / "constraints.txt").read_text().splitlines()
        if not row.startswith("#")
    ]
    for row in rows:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.+!]*", row), row
    names = [row.split("==")[0] for row in rows]
    assert names == sorted(set(names))
    assert "://" not in (ROOT / "constraints.txt").read_text()


def test_mindspore_is_pinned_in_pyproject_alone() -> None:
    # The image brings its own build of it: a constraint would forbid that.
    (found,) = (Requirement(row) for row in EXTRAS["cpu"])
    assert found.name == "mindspore"
    assert [clause.operator for clause in found.specifier] == ["=="]
    assert "mindspore" not in pins()


@pytest.mark.parametrize("extra", ["", "jobs", "dev"])
def test_what_an_extra_installs_is_pinned(extra: str) -> None:
    pinned = pins()
    rows = EXTRAS[extra] if extra else PROJECT["dependencies"]
    for row in map(Requirement, rows):
        assert row.name in pinned, row
        assert row.specifier.contains(pinned[row.name]), row
    unpinned, queue = set(), deque(Requirement(row) for row in [*rows, *EXTRAS["cpu"]])
    seen: set[tuple[str, str]] = set()
    while queue:
        row = queue.popleft()
        for wanted in ("", *row.extras):
            if (row.name, wanted) in seen:
                continue
            seen.add((row.name, wanted))
            try:
                further = importlib.metadata.requires(row.name) or []
            except importlib.metadata.PackageNotFoundError:
                continue  # an extra that is not installed here; CI has them all
            if canonicalize_name(row.name) not in {*pinned, "mindspore"}:
                unpinned.add(row.name)
            queue += [
                inner
                for inner in map(Requirement, further)
                if inner.marker is None or inner.marker.evaluate({"extra": wanted})
            ]
    # Tools of installation itself; pip never pins what it does not install.
    assert unpinned <= {"setuptools", "wheel", "pip"}


FORBIDDEN = {
    # Written in parts, so that this file may be looked at as well.
    "a machine's path": r"(?<![\w.-])/(farm|work/(main|shared)|tmp/w|root/\." + "cache)(?![a-z])",
    "session machinery": r"\.lib" + "rary",
    "an index of packages": "--(extra-)?index" + "-url|pypi" + r"\.org|python" + "hosted",
    "a merge's marks": "^(<{7}|>{7}) ",
}


def test_nothing_of_a_machine_stands_in_the_project() -> None:
    files = tracked()
    if not files:
        pytest.skip("not a git checkout")
    found = []
    for path in files:
        text = path.read_text(encoding="utf-8", errors="replace")
        rules = dict(FORBIDDEN)
        if not name(path).startswith(".ci/"):
            rules["a folder outside the project"] = r"\.\./" + "shared"
        for what, pattern in rules.items():
            if hit := re.search(pattern, text, re.MULTILINE):
                found.append(f"{name(path)}: {what}: {hit.group()}")
    assert not found


def test_no_test_is_marked_skip_or_xfail() -> None:
    pattern = re.compile(r"mark\.(skip|xfail)" + r"\b")
    assert not [p for p in (ROOT / "tests").rglob("*.py") if pattern.search(p.read_text())]


def test_every_mark_is_known() -> None:
    known = {row.split(":")[0] for row in PYPROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    built_in = {"parametrize", "usefixtures", "timeout", "filterwarnings"}
    used = {
        hit
        for path in (ROOT / "tests").rglob("*.py")
        for hit in re.findall(r"pytest\.mark\.(\w+)", path.read_text())
    }
    assert used <= known | built_in


def test_readme_has_the_two_lines_that_ci_runs() -> None:
    text = (ROOT / "README.md").read_text()
    for mark, word in (("run", "launcher submit train"), ("test", "pytest")):
        (block,) = re.findall(
            rf"^<!-- {mark} -->\n```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE
        )
        assert len(block.splitlines()) == 1
        assert "-c constraints.txt" in block
        assert word in block


def test_who_edits_the_jobs_of_a_checkout_has_a_launcher_that_reads_them() -> None:
    # An installed copy carries its own, and an edit would be passed over without a word.
    section = (ROOT / "README.md").read_text().partition("\n## On a cluster\n")[2]
    first, *_ = re.findall("`(pip install[^`]*)`", section)
    assert first == "pip install -c constraints.txt -e ."


def test_the_build_arguments_of_the_readme_are_words_that_a_builder_knows() -> None:
    given = set(re.findall(r"--build-arg (\w+)=", (ROOT / "README.md").read_text()))
    assert given >= {"FRAMEWORK", "BASE_IMAGE", "PIP_INDEX_URL", "REVISION"}
    assert given <= set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.M))


def test_the_wheel_carries_the_bases() -> None:
    target = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    from launcher.doctors.rights import _FILES

    rights = {f"k8s/{path}": f"launcher/bases/rbac/{name}.yaml" for name, path in _FILES.items()}
    assert target["force-include"] == {"k8s/jobs": "launcher/bases", **rights}
    assert set(target["packages"]) == {"jobs", "launcher"}
    assert {path.name for path in (ROOT / "k8s/jobs").iterdir()} == {"train.yaml", "infer.yaml"}


def test_a_built_wheel_holds_all_that_the_packages_read(
    tmp_path: Path, missing: Callable[[str, str], NoReturn]
) -> None:
    if importlib.util.find_spec("hatchling") is None:
        missing("wheel", "building a wheel without a download needs hatchling")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(tmp_path), str(ROOT)],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    read = [path for path in tracked() if path.parts[len(ROOT.parts)] in ("jobs", "launcher")]
    expected = {name(path) for path in read}
    assert expected | {"launcher/bases/train.yaml", "launcher/bases/infer.yaml"} <= inside
    assert not {row for row in inside if row.startswith(("tests/", "k8s/"))}
