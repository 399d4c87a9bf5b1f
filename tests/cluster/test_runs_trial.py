"""What the dry run before a create finds: a wrong setting, a wait, an engine that is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import Cluster

from launcher import cli

pytestmark = pytest.mark.cluster

SUBMIT = ("submit", "train", "--image", "registry.example/jobs:1", "--store", "file:///data")
Told = Callable[..., tuple[int, str, str]]


@pytest.fixture
def submitted(namespace, capsys, tmp_path, monkeypatch) -> Told:
    """Return a function that submits run `cat`; it returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def submit(*flags: str) -> tuple[int, str, str]:
        capsys.readouterr()
        words = [*SUBMIT, "--name", "cat", "--backend", "kubernetes", "-n", namespace, *flags]
        code = cli.main(words)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return submit


@pytest.fixture
def core(cluster: Cluster) -> Any:
    from kubernetes import client

    return client.CoreV1Api(cluster.api())


@pytest.fixture
def jobs(namespace, kubectl) -> Callable[[], str]:
    return lambda: kubectl("get", "jobs", "-n", namespace, "-o", "name")


@pytest.mark.parametrize(
    ("resource", "most", "key"),
    [("memory", "1Gi", "memory_per_npu_gib"), ("cpu", "1", "cpu_per_npu")],
)
def test_a_limit_that_a_setting_decides_names_it(
    submitted: Told, core, namespace, jobs, resource, most, key
) -> None:
    limit = {"type": "Container", "max": {resource: most}}
    body = {"metadata": {"name": "small"}, "spec": {"limits": [limit]}}
    core.create_namespaced_limit_range(namespace, body)
    code, out, err = submitted()
    assert (code, out, jobs()) == (78, "", "")
    assert f"a container may ask at most {most} of {resource}" in err
    assert f"set {key} in launcher.toml" in err


def test_a_priority_class_that_is_missing_names_the_flag(submitted: Told, jobs) -> None:
    code, out, err = submitted("--priority", "nobodys")
    assert (code, out, jobs()) == (78, "", "")
    assert "error: pod: priority class nobodys does not exist" in err
    assert "--priority NAME" in err


def test_a_quota_that_is_used_up_is_warned_of(submitted: Told, core, namespace, jobs) -> None:
    quota = {"metadata": {"name": "npus"}, "spec": {"hard": {"requests.cpu": "1"}}}
    core.create_namespaced_resource_quota(namespace, quota)
    # The quota's controller writes what is used; there may be none here.
    used = {"status": {"hard": {"requests.cpu": "1"}, "used": {"requests.cpu": "0"}}}
    core.patch_namespaced_resource_quota_status("npus", namespace, used)
    code, out, err = submitted()
    assert (code, out, jobs()) == (0, "cat\n", "job.batch/cat\n")
    assert "warning: its pods have to wait: can never fit: quota npus: asks 16 CPU" in err


def test_without_a_quota_nothing_is_warned_of(submitted: Told) -> None:
    code, _, err = submitted()
    assert code == 0
    assert "have to wait" not in err


@pytest.mark.parametrize(
    ("engine", "group"), [("kueue", "kueue.x-k8s.io"), ("volcano", "scheduling.volcano.sh")]
)
def test_an_engine_that_is_not_installed_is_refused(
    submitted: Told, jobs, monkeypatch, engine, group
) -> None:
    from launcher import queues

    # Other tests may have installed the CRDs of the real groups.
    absent = {name: f"absent.{value}" for name, value in queues.API_GROUPS.items()}
    monkeypatch.setattr(queues, "API_GROUPS", absent)
    code, out, err = submitted("--queue", "npus", "--queue-engine", engine)
    assert (code, out, jobs()) == (78, "", "")
    assert f"error: queue: this cluster has no absent.{group}" in err
