"""Owns the verb `doctor`: what is looked at, the lines it prints, the code it ends with.

What is looked for is storedoctor.py's, clusterdoctor.py's and nodedoctor.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from launcher import output, storage
from launcher.doctors import storedoctor
from launcher.doctors.probe import Check
from launcher.errors import LauncherError, Misconfigured, Unreachable
from launcher.settings import Settings, Target

if TYPE_CHECKING:  # each of them loads what the look at a store alone does without
    from jobs.specs import TrainSpec
    from launcher.backends.kubernetes import Kubernetes
    from launcher.doctors.findings import Line, Wanted

_CHOOSE_A_CLUSTER = ("backend", "context", "namespace")
"""Settings by which somebody says that there is a cluster."""
PLACEHOLDERS = {"image": "localhost/jobs:dev", "store": "file:///scratch/store"}
"""What a Job is made with where the setting is missing or wrong; the bases have the same."""
_MEMORY = "memory_per_npu_gib"


def examine(settings: Settings, *, pod: bool, as_json: bool) -> None:
    """Print a line for each thing that was looked at; end with the first failure's code.

    Args:
        settings: where runs go. With the local backend, or where nobody chose one and there is no
            kubeconfig, only the store is looked at.
        pod: whether the store is tried from a pod, too.
        as_json: whether a document is printed instead of lines.

    Raises:
        Forbidden: credentials are missing or wrong, or may not do something.
        Unreachable: nobody answers.
        Misconfigured: a setting is wrong; the hint is the line that works, if one was found.
    """
    if settings.target.backend == "local":
        if pod:
            raise Misconfigured("--pod: the local backend has no pods", "--backend kubernetes")
        _examine_store(settings, as_json=as_json)
        return
    from launcher.backends.kubernetes import Kubernetes

    try:
        cluster = Kubernetes(settings.target.context, settings.target.namespace)
    except LauncherError as error:
        chosen = pod or any(settings.is_set(key) for key in _CHOOSE_A_CLUSTER)
        if isinstance(error, Unreachable) and not chosen:
            _examine_store(settings, as_json=as_json)
        else:
            _examine_cluster(settings, error, pod=pod, as_json=as_json)
        return
    _examine_cluster(settings, cluster, pod=pod, as_json=as_json)


def _examine_cluster(
    settings: Settings, cluster: Kubernetes | LauncherError, *, pod: bool, as_json: bool
) -> None:
    from launcher.backends import clusterfacts
    from launcher.doctors import clusterdoctor

    wanted = _wanted(settings.target)
    document: dict[str, Any] = {}
    if isinstance(cluster, LauncherError):
        found = clusterdoctor.without_cluster(cluster, wanted)
    else:
        facts = clusterfacts.facts(cluster, wanted)
        found = clusterdoctor.lines(facts, wanted)
        document = {"context": facts.context, "server": facts.host, "namespace": facts.namespace}
    line, document["store"] = _store_line(settings, wanted)
    found.append(line)
    if pod:
        found.append(_pod_line(cluster, wanted, found))
    _tell(found, document, as_json=as_json)


def _wanted(target: Target) -> Wanted:
    """Return what the settings ask for; a wrong one is told, and another value takes its place."""
    from jobs.specs import TrainSpec
    from launcher.doctors.findings import Wanted

    problems: dict[str, LauncherError] = {}
    lean: LauncherError | None = None
    usable, spec = target, TrainSpec()
    defaults = {field: getattr(Target(), field) for field in Target.__dataclass_fields__}
    while True:
        try:
            job, room = _jobs(usable, spec)
            break
        except LauncherError as error:
            setting = error.text.split(" ")[0].rstrip(":")
            if setting not in defaults or setting in problems:
                raise
            if setting == _MEMORY and lean is None:  # a place to try things may be that small
                lean, spec = error, TrainSpec(model="tiny")
                continue
            problems[setting] = error
            if setting == _MEMORY:
                lean, spec = None, TrainSpec()
            value = PLACEHOLDERS.get(setting, defaults[setting])
            usable = replace(usable, **{setting: value})
    return Wanted(target=target, job=job, room=room, problems=problems, lean=lean)


def _jobs(target: Target, spec: TrainSpec) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the smallest Job there is, and the pod of one that takes a whole server.

    Raises:
        LauncherError: a setting is wrong; the text begins with its name.
    """
    from launcher import devices, manifests
    from launcher.plan import plan

    base = manifests.base("train")
    least, *_, most = (1, *devices.server(target.server).legal)
    made = [
        manifests.render(plan(spec, target, name="doctor", npus=npus), base)
        for npus in (least, most)
    ]
    return made[0], made[1]["spec"]["template"]["spec"]


def _store_line(settings: Settings, wanted: Wanted) -> tuple[Line, Any]:
    """Return what came of trying the store from here, and the document of it."""
    from launcher.doctors.findings import Line, failed

    if "store" in wanted.problems:
        return failed("store", wanted.problems["store"]), None
    url = settings.target.store
    if not storage.remote(url):
        text = f"{url}: is a folder of the pods, which is not tried from here"
        return Line("store", "warn", text, "launcher doctor --pod tries it there"), None
    try:
        trial = storedoctor.tried(settings)
    except LauncherError as error:
        return failed("store", error), None
    if trial.problem is not None:
        return failed("store", trial.problem), trial.document()
    text = f"{trial.store.url}: written, read, listed and deleted from here ({trial.told})"
    return Line("store", "ok", text), trial.document()


def _pod_line(cluster: Kubernetes | LauncherError, wanted: Wanted, found: list[Line]) -> Line:
    """Return what came of trying the store from a pod."""
    from launcher.backends import storepod
    from launcher.doctors.findings import Line

    broken = {line.name for line in found if line.state == "fail"}
    for needed in ("context", "server", "namespace", "image"):
        if needed in broken:
            return Line("pod", "warn", f"not tried: see the line `{needed}`")
    if isinstance(cluster, LauncherError) or "store" in wanted.problems:
        return Line("pod", "warn", "not tried: see the line `store`")
    return storepod.line(cluster.api, wanted, output.say)


def _tell(found: list[Line], document: dict[str, Any], *, as_json: bool) -> None:
    """Print the lines; raise the first that is a failure.

    Raises:
        LauncherError: of that line's kind.
    """
    wrong = [line for line in found if line.state == "fail"]
    if as_json:
        rows = [
            {"check": row.name, "state": row.state, "text": row.text, "fix": row.fix or None}
            for row in found
        ]
        output.as_json({"works": not wrong, **document, "checks": rows})
    else:
        width = max(len(line.name) for line in found) + 2
        for line in found:
            output.data(f"{line.state:<6}{line.name:<{width}}{line.text}")
            if line.fix and line.state != "ok":
                output.data(f"{'':<{6 + width}}fix: {line.fix}")
    warned = sum(line.state == "warn" for line in found)
    output.say(f"{output.counted(len(found), 'check')}: {len(wrong)} failed, {warned} warned")
    if wrong:
        raise wrong[0].error(f"{wrong[0].name}: {wrong[0].text}", wrong[0].fix)


def _examine_store(settings: Settings, *, as_json: bool) -> None:
    trial = storedoctor.tried(settings)
    if as_json:
        output.as_json(trial.document())
    else:
        _print(trial.checks)
    if trial.problem is None:
        told = f" ({trial.told})" if trial.told else ""
        output.say(f"{trial.store.url}: works{told}")
        if settings.target.store_endpoint_here:
            output.say(f"not tried from here: store_endpoint {settings.target.store_endpoint!r}")
        return
    if not as_json:
        for line in storedoctor.lines(trial.rows):
            output.data(line)
    raise trial.problem


def _print(checks: Sequence[Check]) -> None:
    rows = []
    for check in checks:
        blamed = f"{check.setting}: " if check.setting else ""
        rows.append(("ok" if check.good else "wrong", check.name, f"{blamed}{check.text}"))
    output.data("\n".join(f"{state:<6}{name:<17}{text}".rstrip() for state, name, text in rows))
