"""Submissions with an S3 store: a real API server, a real S3 server."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "s3"))
import servers

from jobs.access import Access
from jobs.specs import INLINE_PROMPT_BYTES
from jobs.stores import open_store
from launcher import cli

pytestmark = [pytest.mark.cluster, pytest.mark.store]


@pytest.fixture
def gateway(tmp_path, missing, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET_KEY)
    try:
        with servers.server("versitygw", tmp_path / "s3") as running:
            yield running
    except servers.Missing as error:
        missing("store", str(error))


def job(cluster: Any, namespace: str, name: str) -> Any:
    from kubernetes import client

    return client.BatchV1Api(cluster.api()).read_namespaced_job(name, namespace)


def test_long_prompts_reach_the_job_by_way_of_the_store(
    cluster, namespace, gateway, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    lines = [f"picture {n} of $(HOME)" for n in range(INLINE_PROMPT_BYTES // 20)]
    Path("p.txt").write_text("\n".join(lines))
    Path("launcher.toml").write_text(
        f'image = "registry.example/jobs:1"\nstore = "s3://{gateway.bucket()}/runs"\n'
        f'store_endpoint = "http://minio.storage.svc:9000"\nnamespace = "{namespace}"\n'
        f'store_endpoint_here = "{gateway.endpoint}"\nstore_secret = "keys"\n'
    )
    submit = ["submit", "infer", "--prompts", "p.txt", "--name"]
    assert cli.main([*submit, "long"]) == 0, capfd.readouterr().err
    assert capfd.readouterr().out == "long\n"
    (main,) = job(cluster, namespace, "long").spec.template.spec.containers
    values = {row.name: row.value for row in main.env}
    assert values["JOB_STORE_ENDPOINT"] == "http://minio.storage.svc:9000"
    assert main.env_from[0].secret_ref.name == "keys"
    prompts = json.loads(values["JOB_SPEC"])["prompts"]
    store = open_store(values["JOB_STORE"], Access(endpoint=gateway.endpoint))
    data = store.read(prompts["key"])
    assert hashlib.sha256(data).hexdigest() == prompts["sha256"]
    assert [json.loads(row)["prompt"] for row in data.splitlines()] == lines
    # The name is taken: nothing new is put there, and what the first Job reads stays.
    assert cli.main([*submit, "long"]) == 73
    assert store.read(prompts["key"]) == data
    # Not allowed to write there: no Job is created.
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    Path("p.txt").write_text("\n".join(reversed(lines)))
    assert cli.main([*submit, "other"]) == 77
    from kubernetes.client.exceptions import ApiException

    with pytest.raises(ApiException, match="404"):
        job(cluster, namespace, "other")
