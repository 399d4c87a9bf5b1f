"""What brings a run on a real control plane into a state, and compares what is said of it.

Each line that a scene leads to is a golden file, tests/golden/explain/<scene>.txt; beside it lie
the API objects it was made of (.json), which test_explain.py reads. RECORD=1 writes both anew.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from explained import GOLDEN, anonymous, revived, untimed, words

from jobs.specs import TrainSpec
from launcher import fields, manifests
from launcher.backends import snapshots
from launcher.backends.apiserver import ApiServer
from launcher.plan import plan
from launcher.settings import Target
from launcher.snapshot import Snapshot
from launcher.why import explain

IMAGE = "registry.example/jobs:1"
NPU = "huawei.com/Ascend910"
HELD = {"play/hold": "true"}
"""Annotation of pods whose status a test writes itself."""


@dataclass
class Stage:
    """A namespace or two on a real API server, and the people who act there."""

    api: ApiServer
    client: Any
    """The administrator's client, whose header names whom it acts for."""
    namespace: str
    nodes: list[str] = field(default_factory=list)

    def submit(
        self, name: str, *, npus: int = 8, nodes: int = 1, pool: str = "", play: Any = (),
        namespace: str = "", edit: Callable[[Any], None] | None = None, **target: Any,
    ) -> Any:  # fmt: skip
        """Create a run's Job as the launcher renders it, on the nodes of a pool."""
        namespace = namespace or self.namespace
        made = plan(
            TrainSpec(),
            Target(image=IMAGE, store="s3://b/r", namespace=namespace, **target),
            name=name, npus=npus, nodes=nodes,
        )  # fmt: skip
        manifest = manifests.render(made, manifests.base("train"))
        template = manifest["spec"]["template"]
        template["metadata"].setdefault("annotations", {}).update(dict(play))
        if pool:
            template["spec"]["nodeSelector"] = {"pool": pool}
        if edit:
            edit(manifest)
        return self.api.post(f"/apis/batch/v1/namespaces/{namespace}/jobs", manifest)

    def node(
        self, name: str, pool: str, npus: int = 8, *, played: bool = True, **more: Any
    ) -> None:
        """Make a node; KWOK plays it, or nobody does: then a test is its kubelet."""
        room = {"cpu": "640", "memory": "3000Gi", "ephemeral-storage": "30Ti", "pods": "110"}
        room |= {more.get("resource", NPU): str(npus)} | more.get("room", {})
        labels = {"pool": pool, "kubernetes.io/hostname": name, "kubernetes.io/arch": "arm64"}
        labels |= {"accelerator-type": "module-910b-8"} | more.get("labels", {})
        annotations = {"kwok.x-k8s.io/node": "fake"} if played else {}
        spec = {"taints": more.get("taints", []), "unschedulable": more.get("cordoned", False)}
        metadata = {"name": name, "labels": labels, "annotations": annotations}
        status = {"capacity": room, "allocatable": room}
        self.api.post("/api/v1/nodes", {"metadata": metadata, "spec": spec, "status": status})
        self.nodes.append(name)

    def kubelet(
        self, node: str, path: str, body: Any, method: str = "PATCH", whom: str = ""
    ) -> Any:
        """Send a request with the identity of a node's kubelet, or of a controller."""
        headers = {
            "Impersonate-User": whom or f"system:node:{node}",
            "Impersonate-Group": "system:authenticated" if whom else "system:nodes",
            "Content-Type": "application/json"
            if method == "POST"
            else "application/merge-patch+json",
            "Accept": "application/json",
        }
        request = self.client.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        answer = self.client.call_api(*request)
        assert 200 <= answer.status < 300, (path, answer.read())
        return json.loads(answer.read())

    def pod(self, run: str, index: int = 0) -> Any:
        """Return the newest pod of an index once it has a node."""

        def placed() -> Any:
            rows = [row for row in snapshots.pods_of(self.api, run) if fields.index(row) == index]
            return rows and fields.of(rows[-1], "spec", "nodeName") and rows[-1]

        return until(placed, f"a pod of {run} on a node")

    def says(self, run: str, status: Any, index: int = 0, whom: str = "") -> Any:
        """Let a pod's kubelet write its status; return the pod."""
        pod = self.pod(run, index)
        path = f"/api/v1/namespaces/{self.namespace}/pods/{fields.name(pod)}/status"
        return self.kubelet(pod["spec"]["nodeName"], path, {"status": status}, whom=whom)

    def tells(self, run: str, reason: str, message: str, whom: str = "") -> None:
        """Let a pod's kubelet write an event about it."""
        pod = self.pod(run)
        body = {
            "metadata": {"name": f"{fields.name(pod)}.{reason.lower()}"},
            "involvedObject": {
                "kind": "Pod", "namespace": self.namespace, "name": fields.name(pod),
                "uid": fields.uid(pod), "apiVersion": "v1",
            },
            "reason": reason, "message": message, "type": "Warning", "count": 1,
            "firstTimestamp": now(), "lastTimestamp": now(),
            "source": {"component": "kubelet", "host": pod["spec"]["nodeName"]},
        }  # fmt: skip
        path = f"/api/v1/namespaces/{self.namespace}/events"
        self.kubelet(pod["spec"]["nodeName"], path, body, "POST", whom)

    def delete_pod(self, run: str, grace: int = 60) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/pods/{fields.name(self.pod(run))}"
        self.api.delete(path, {"gracePeriodSeconds": grace})


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def until(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """Return what the condition gives once that is true; a test fails where it never is."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s in vain for {what}", pytrace=False)
        time.sleep(0.1)
    return found


def waiting(reason: str, message: str, image: str = IMAGE) -> dict[str, Any]:
    """Return the status of a pod whose program waits."""
    state = {"waiting": {"reason": reason, "message": message}}
    return _status("Pending", state, image)


def ended(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    """Return the status of a pod whose program has ended."""
    state = {
        "terminated": {
            "exitCode": code, "reason": reason, "message": message,
            "startedAt": now(), "finishedAt": now(),
        }
    }  # fmt: skip
    return _status("Succeeded" if code == 0 else "Failed", state)


def _status(phase: str, state: Any, image: str = IMAGE) -> dict[str, Any]:
    row = {"name": "main", "image": image, "imageID": "", "ready": False, "restartCount": 0}
    return {"phase": phase, "containerStatuses": [row | {"state": state}]}


def check(
    stage: Stage, scene: str, *, run: str = "", namespace: str = "",
    seen: Callable[[Snapshot], Snapshot] = lambda found: found,
    when: Callable[[Snapshot], Any] = lambda found: True,
) -> None:  # fmt: skip
    """Wait until what is said of a run is what the golden file holds.

    Args:
        stage: where it is.
        scene: the golden file's name.
        run: the run's; the scene's where it is empty.
        namespace: the run's, where it is not the stage's.
        seen: what the user sees of all there is.
        when: what has to be there first.
    """
    api = ApiServer(namespace=namespace) if namespace else stage.api
    golden = GOLDEN / f"{scene}.txt"
    expected = golden.read_text() if golden.exists() else ""
    recording = bool(os.environ.get("RECORD"))
    deadline = time.monotonic() + (15 if recording else 25)
    told = "nothing"
    while time.monotonic() < deadline:
        found = seen(snapshots.snapshot(api, run or scene))
        if when(found):
            kept = anonymous(found, api.namespace)
            told = words(explain.explain(revived(kept)))
            if untimed(told) == untimed(expected) or (recording and told):
                break
        time.sleep(0.1)
    else:
        assert untimed(told) == untimed(expected), scene
    if recording:
        golden.write_text(told)
        rows = (f'"{key}": {json.dumps(kept[key], sort_keys=True)}' for key in kept)
        golden.with_suffix(".json").write_text("{" + ",\n ".join(rows) + "}\n")
