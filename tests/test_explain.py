"""What is said of runs: of the objects that a real control plane gave, and of damaged ones.

The objects were recorded by tests/cluster/test_explain_*.py, which bring the scenes about.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from explained import GOLDEN, revived, words

from launcher.nodes import Node
from launcher.records import Progress
from launcher.snapshot import Snapshot
from launcher.why import (
    admission,
    attempts,
    endings,
    explain,
    podreasons,
    podstate,
    schedulerwords,
    timeline,
)

SCENES = sorted(path.stem for path in GOLDEN.glob("*.json"))
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def recorded(scene: str) -> Any:
    return json.loads((GOLDEN / f"{scene}.json").read_text())


@pytest.mark.parametrize("scene", SCENES)
def test_the_line_of_each_scene(scene: str) -> None:
    found = revived(recorded(scene))
    assert words(explain.explain(found)) == (GOLDEN / f"{scene}.txt").read_text()


def test_there_is_a_line_for_each_recording() -> None:
    assert SCENES
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == SCENES


@pytest.mark.parametrize("scene", SCENES)
def test_no_line_ends_like_a_sentence_or_breaks(scene: str) -> None:
    found = explain.explain(revived(recorded(scene)))
    for text in (found.line, found.next_step, *found.notes):
        assert text == text.strip().rstrip(".")
        assert text.isprintable()
        assert text.isascii()


KINDS = (KeyError, None, "", 7, [], {}, 2**63 - 1, "9" * 4400, "9999-12-31T23:59:59Z")
"""What is put in the place of a field, in turn; KeyError: the field is missing."""


def damages(value: Any) -> Iterator[None]:
    """Damage one thing in a JSON value after the other; each is put back."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for count, key in enumerate(list(keys)):
        whole = value[key]
        yield from damages(whole)
        kind = KINDS[(count + len(repr(whole))) % len(KINDS)]
        if kind is KeyError and isinstance(value, dict):
            del value[key]
        else:
            value[key] = kind
        yield
        value[key] = whole


@pytest.mark.parametrize("scene", SCENES)
def test_any_field_may_be_missing_or_strange(scene: str) -> None:
    row = recorded(scene)
    row["nodes"] = row["nodes"] and row["nodes"][:1]
    for part in (
        row["job"],
        row["pods"],
        row["events"],
        row["workload"] or {},
        row["pod_group"] or {},
    ):
        for _ in damages(part):
            found = revived(row)
            assert explain.explain(found).line
            timeline.timeline(found)


def scene(name: str) -> Snapshot:
    return revived(recorded(name))


def test_progress_is_part_of_a_running_line() -> None:
    told = explain.explain(scene("running"), Progress(step=120, steps=1000, seconds_left=600))
    assert told.line.endswith(": step 120 of 1000, about 10m 00s left")
    told = explain.explain(scene("running"), Progress(pictures=3, asked=10))
    assert told.line.endswith(": 3 of 10 pictures")


@pytest.mark.parametrize(
    ("failures", "free", "seconds"), [(0, 0, 10), (1, 0, 20), (1, 1, 40), (0, 5, 320), (9, 9, 600)]
)
def test_the_next_attempt_waits_as_the_job_controller_does(
    failures: int, free: int, seconds: int
) -> None:
    row = recorded("code-69")
    row["job"]["spec"]["backoffLimitPerIndex"] = 20
    annotations = row["pods"][0]["metadata"]["annotations"]
    annotations["batch.kubernetes.io/job-index-failure-count"] = str(failures)
    annotations["batch.kubernetes.io/job-index-ignored-failure-count"] = str(free)
    (attempt,) = attempts.newest(revived(row).pods)
    assert attempt.ending is not None
    assert attempt.next_at == attempt.ending.finished + timedelta(seconds=seconds)
    told = explain.explain(revived(row))
    assert f"attempt {failures + free + 2} starts in about" in told.line
    assert f"({failures + 1} of 20 retries used)" in told.line
    assert (told.retries_used, told.retries) == (failures + 1, 20)


def test_the_state_is_among_those_that_are_named() -> None:
    told = {explain.explain(scene(name)).state for name in SCENES}
    states = {*get_args(explain.State)[:4], *get_args(podstate.PodState)}
    assert told == states - {"ended"}


def pod(*marks: tuple[str, int]) -> dict[str, Any]:
    """Return a pod with times in seconds after noon: made, placed, running, ended."""
    times = {name: (NOW + timedelta(seconds=second)).isoformat() for name, second in marks}
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": times.get("placed")}
    state: dict[str, Any] = {"running": {"startedAt": times.get("running")}}
    if "ended" in times:
        ends = {"exitCode": 0, "startedAt": times["running"], "finishedAt": times["ended"]}
        state = {"terminated": ends}
    return {
        "metadata": {"name": "cat-0-x", "uid": "p", "creationTimestamp": times["made"]},
        "spec": {"nodeName": "atlas-1", "containers": [{"name": "main"}]},
        "status": {
            "phase": "Succeeded" if "ended" in times else "Running",
            "conditions": [placed] if "placed" in times else [],
            "containerStatuses": [{"name": "main", "state": state}] if "running" in times else [],
        },
    }


def pulled(reason: str, second: int) -> dict[str, Any]:
    moment = (NOW + timedelta(seconds=second)).isoformat()
    about = {"name": "cat-0-x", "uid": "p"}
    return {
        "involvedObject": about,
        "reason": reason,
        "firstTimestamp": moment,
        "lastTimestamp": moment,
    }


def seen(second: int, *pods: Any, events: Any = ()) -> Snapshot:
    job = {"metadata": {"name": "cat", "creationTimestamp": NOW.isoformat()}}
    return Snapshot(
        job=job, pods=pods, events=tuple(events), now=NOW + timedelta(seconds=second)
    )  # fmt: skip


def at(second: int) -> str:
    return (NOW + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%SZ")


PULLS = [pulled("Pulling", 62), pulled("Pulled", 190)]
LIFE = (("made", 1), ("placed", 60), ("running", 200))


@pytest.mark.parametrize(
    ("found", "progress", "expected"),
    [
        (seen(5), None, "queued 5s so far"),
        (seen(9, pod(("made", 1))), None, "queued 9s so far"),
        (seen(70, pod(*LIFE[:2])), None, "queued 1m 00s, starting 10s so far"),
        (
            seen(100, pod(*LIFE[:2]), events=PULLS[:1]), None,
            "queued 1m 00s, starting 2s, pulling 38s so far",
        ),
        (
            seen(260, pod(*LIFE), events=PULLS), None,
            "queued 1m 00s, starting 12s, pulling 2m 08s, running 1m 00s so far",
        ),
        (
            seen(260, pod(*LIFE)), Progress(),
            "queued 1m 00s, starting 2m 20s, compiling 1m 00s so far",
        ),
        (
            seen(2600, pod(*LIFE)), Progress(step=5, steps=9, began=at(2000), newest=at(2500)),
            "queued 1m 00s, starting 2m 20s, compiling 30m 00s, training 10m 00s so far",
        ),
        (
            seen(9000, pod(*LIFE, ("ended", 2560))),
            Progress(step=9, steps=9, began=at(2000), newest=at(2500)),
            "queued 1m 00s, starting 2m 20s, compiling 30m 00s, training 8m 20s, uploading 1m 00s",
        ),
        (  # a later attempt, and rows that do not say whose they are
            seen(2600, pod(*LIFE)), Progress(step=5, steps=9, began=at(100), newest=at(2500)),
            "queued 1m 00s, starting 2m 20s, running 40m 00s so far",
        ),
    ],
)  # fmt: skip
def test_where_the_time_went(found: Snapshot, progress: Progress | None, expected: str) -> None:
    assert timeline.told(timeline.timeline(found, progress)) == expected


def test_clocks_that_differ_make_no_time_negative() -> None:
    phases = timeline.timeline(seen(50, pod(("made", 1), ("placed", 60), ("running", 40))))
    assert all(phase.seconds >= 0 for phase in phases)


def test_phases_add_up_to_the_time_that_has_passed() -> None:
    life = (("made", 1), ("placed", 60), ("running", 40), ("ended", 90))
    phases = timeline.timeline(seen(500, pod(*life), events=PULLS))
    assert sum(phase.seconds for phase in phases) == 190  # Pulled was told after the end


def test_a_run_whose_store_has_no_record_of_it_is_no_success() -> None:
    done = {"type": "Complete", "status": "True"}
    job = {"metadata": {"name": "cat"}, "status": {"conditions": [done]}}
    found = Snapshot(job=job, now=NOW)
    for known, state in ((None, "succeeded"), (True, "succeeded"), (False, "failed")):
        told = explain.explain(found, None if known is None else Progress(success=known))
        assert (told.state, told.code) == (state, 0)
    assert (told.word, "no record" in told.line) == ("no-record", True)


def test_a_queue_of_an_engine_that_is_not_there_is_told() -> None:
    metadata = {"name": "cat", "labels": {"kueue.x-k8s.io/queue-name": "npus"}}
    job = {"metadata": metadata, "spec": {"suspend": True}}
    assert not explain.explain(Snapshot(job=job, now=NOW)).stuck
    told = explain.explain(Snapshot(job=job, no_kueue=True, now=NOW))
    assert (told.word, told.stuck) == ("no-kueue", True)


@pytest.mark.parametrize("scene", ["cancelled", "drained", "preempted"])
def test_a_clock_that_is_ahead_declares_no_node_lost(scene: str) -> None:
    row = recorded(scene)
    row["now"] = (datetime.fromisoformat(row["now"]) + timedelta(minutes=10)).isoformat()
    names = {pod["spec"]["nodeName"] for pod in row["pods"]}
    found = revived(row)
    for ready in (True, False):
        nodes = tuple(Node(name=name, labels={}, allocatable={}, ready=ready) for name in names)
        told = explain.explain(dataclasses.replace(found, nodes=nodes))
        assert (told.word == "node-lost") is not ready


def test_a_lost_node_is_told_before_the_grace_is_over() -> None:
    row = recorded("node-lost")
    deadline = datetime.fromisoformat(row["pods"][0]["metadata"]["deletionTimestamp"])
    row["now"] = (deadline - timedelta(seconds=20)).isoformat()
    assert explain.explain(revived(row)).word == "node-lost"
    for one in row["nodes"]:
        one["ready"] = True
    told = explain.explain(revived(row))
    assert (told.state, told.stuck) == ("stopping", False)
    assert "up to 20s left to save and upload" in told.line


def test_without_facts_of_nodes_a_pod_that_is_a_little_late_is_not_lost() -> None:
    deadline = NOW - timedelta(seconds=20)
    pod = {
        "metadata": {"name": "p", "deletionTimestamp": deadline.isoformat()},
        "spec": {"nodeName": "n"},
        "status": {"phase": "Running"},
    }
    assert podreasons.lost(pod, (), None, NOW) is None
    late = podreasons.lost(pod, (), None, NOW + timedelta(seconds=15))
    assert late is not None
    assert late.word == "node-lost"


@pytest.mark.parametrize(
    ("wanted", "refused_at", "refused"), [(1, 60, False), (2, 60, True), (2, 0, False)]
)
def test_an_old_refusal_of_pods_that_are_there_is_not_told(
    wanted: int, refused_at: int, refused: bool
) -> None:
    def moment(seconds: int) -> str:
        return (NOW + timedelta(seconds=seconds)).isoformat()

    job = {"metadata": {"name": "cat", "uid": "1"}, "spec": {"parallelism": wanted}}
    pod = {"metadata": {"name": "p", "creationTimestamp": moment(30)}, "status": {}}
    event = {
        "reason": "FailedCreate", "message": "Error creating: no room",
        "involvedObject": {"name": "cat"}, "lastTimestamp": moment(refused_at),
    }  # fmt: skip
    found = Snapshot(job=job, pods=(pod,), events=(event,), now=NOW + timedelta(seconds=90))
    assert (explain.explain(found).word == "refused") is refused


def test_a_missing_claim_is_told_rather_than_a_full_node() -> None:
    row = recorded("fits-later")
    claim = '0/8 nodes are available: persistentvolumeclaim "pictures" not found. not found'
    for condition in row["pods"][0]["status"]["conditions"]:
        condition["message"] = claim
    assert explain.explain(revived(row)).line == "its PersistentVolumeClaim pictures does not exist"


def test_of_a_quota_the_resource_that_is_over_is_told() -> None:
    message = (
        'Error creating: pods "cat-0-x" is forbidden: exceeded quota: team, requested:'
        " limits.memory=64Gi,requests.cpu=16, used: limits.memory=1Gi,requests.cpu=90, limited:"
        " limits.memory=256Gi,requests.cpu=100"
    )
    told = admission.meaning(message, "team")
    expected = "quota team: asks 16 CPUs, and 90 of 100 are used; it fits when other runs here end"
    assert told.line == expected


@pytest.mark.parametrize(
    ("message", "stuck", "expected"),
    [
        (  # another version's words: the taint is named, and is one that passes
            "0/2 nodes are available: 1 node(s) had untolerated taint"
            " {node.kubernetes.io/unreachable: }, 1 Insufficient cpu. preemption: 0/2 nodes are"
            " available: 2 Preemption is not helpful for scheduling.",
            False, "waits for 8 NPUs: no node that works could hold it even if empty: of 2 nodes 1"
            " tainted node.kubernetes.io/unreachable, 1 with too little cpu",
        ),
        (
            "0/1 nodes are available: 1 node(s) had untolerated taint {team: vision}. preemption:"
            " 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
            True, "can never fit: asks 8 NPUs, and no node could hold it even if empty: of 1 node 1"
            " tainted team=vision",
        ),
        (
            "0/4 nodes are unavailable: 4 Insufficient huawei.com/Ascend910.",
            False, "waits for 8 NPUs: of 4 nodes 4 with too little huawei.com/Ascend910",
        ),
        ("no nodes available to schedule pods", False,
         "no node takes it: no nodes available to schedule pods"),
        ("0/0 nodes are available: ", True, "can never fit: the cluster has no node"),
    ],
)  # fmt: skip
def test_what_schedulers_say(message: str, stuck: bool, expected: str) -> None:
    told = schedulerwords.meaning(message, "8 NPUs")
    assert (told.line, told.stuck) == (expected, stuck)


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ('Usage of EmptyDir volume "work" exceeds the limit "1Gi". ', "disk"),
        ("Pod ephemeral local storage usage exceeds the total limit of containers 40Gi. ", "disk"),
        ('Container main exceeded its local ephemeral storage limit "40Gi". ', "disk"),
        ('Usage of EmptyDir volume "shm" exceeds the limit "4Gi". ', "evicted"),
    ],
)
def test_a_pod_that_took_too_much_disk_is_told_what_to_raise(message: str, word: str) -> None:
    status = {"phase": "Failed", "reason": "Evicted", "message": message}
    found = endings.ending({"spec": {"nodeName": "atlas-1"}, "status": status})
    assert found is not None
    assert (found.word, found.retry) == (word, "counted")
    assert ("data_gib" in endings.advice(found.code, "cats", found.word)) == (word == "disk")
