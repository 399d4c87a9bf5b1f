"""Owns the way of a submission: flags -> spec and target -> plan -> backend, in that order.

Must not decide anything about a run (plan.py, methods) nor act on the world (backends).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from jobs.errors import BadSpec
from jobs.specs import PromptFile, Spec
from jobs.stores import FileStore, open_store
from launcher import inputs, manifests, names, options, output, places, schema
from launcher.backends import local
from launcher.backends.kubernetes import Kubernetes
from launcher.errors import Misconfigured, Usage
from launcher.inputs import Lora, Prompts
from launcher.methods import LOCAL_DEFAULT, TINY, Request, Resolved, resolve
from launcher.plan import JobPlan, plan
from launcher.settings import Settings, Target

Kind = Literal["train", "infer"]
Params = Mapping[str, Any]


def submit(kind: Kind, params: Params) -> None:
    """Submit a run, or print what would be submitted.

    Args:
        kind: what to do.
        params: the flags, by parameter name of the verb.

    Raises:
        LauncherError: as the steps below do; nothing is left behind.
    """
    settings = options.settings(params)
    target, root = settings.target, None
    if target.backend == "local":
        target = places.local_target(settings)
        root = Path(target.store)
    prompts = _prompts(kind, params)
    flags = _flags(kind, params, prompts, root)
    resolved = resolve(
        Request(
            kind=kind,
            flags=flags,
            sets=params["set_"] or (),
            spec_file=params["spec"],
            local=root is not None,
        )
    )
    if root is not None:
        _tell_defaults(resolved, settings)
    spec = resolved.spec if root is None else _placed(resolved)
    name = params["name"]
    if name is None:
        method, now = getattr(spec, "method", ""), datetime.now(UTC)
        name = names.fresh(kind, method, now=now, entropy=os.urandom(4))

    def decide() -> JobPlan:
        counts = {"npus": params["npus"], "nodes": params["nodes"], "cores": _cores()}
        return plan(spec, target, name=name, **counts)

    if params["dry_run"]:
        _tell_upload(prompts, target)
        _print_plan(decide(), target, params["form"])
    elif root is not None:
        _submit_locally(decide(), root, prompts, settings, wait=params["wait"])
    else:
        # Asked before anything is decided: with no cluster at all, nothing else is worth saying.
        cluster = Kubernetes(target.context, target.namespace)
        _submit_to_cluster(cluster, decide(), target, prompts, wait=params["wait"])


def _prompts(kind: Kind, params: Params) -> Prompts | None:
    if kind == "train":
        return None
    if params["prompts"] is not None:
        return inputs.read_prompts(params["prompts"])
    if params["spec"] is None:
        raise Usage("--prompts: is missing", "--prompts FILE, with one prompt a line")
    return None


def _flags(
    kind: Kind, params: Params, prompts: Prompts | None, root: Path | None
) -> dict[str, object]:
    """Return the flags as keys of the spec."""
    flags = options.spec_flags(params, kind)
    if params.get("validation_prompt"):
        flags["validation_prompts"] = tuple(params["validation_prompt"])
    if prompts is not None:
        flags["prompts"] = prompts.value
    if params.get("lora") is not None:
        lora: Lora = inputs.parse_lora(params["lora"])
        # On a cluster the job decides, which alone reaches the store for certain.
        flags |= (inputs.pin(lora, FileStore(root)) if root is not None else lora).flags()
    return flags


def _placed(resolved: Resolved) -> Spec:
    """Return the spec with the paths of this machine checked and absolute."""
    given = resolved.spec.model_dump(include={"model", "data"})
    found = {
        key: inputs.place(key, value, resolved.origins[key])
        for key, value in given.items()
        if value != TINY
    }
    return resolved.spec.model_copy(update=found)


def _tell_defaults(resolved: Resolved, settings: Settings) -> None:
    keys = [key for key, origin in resolved.origins.items() if origin == LOCAL_DEFAULT]
    rows = [f"{key}={TINY}" for key in keys]
    if not settings.target.store:
        keys.append("store")
        rows.append(f"store={places.LOCAL_STORE}")
    if rows:
        flags = ", ".join(f"--{key}" for key in keys)
        output.say(f"local: {' '.join(rows)} (defaults; see {flags})")


def _tell_upload(prompts: Prompts | None, target: Target) -> None:
    if prompts is None or not isinstance(prompts.value, PromptFile):
        return
    try:
        there = inputs.present(open_store(target.store), prompts.value)
    except BadSpec:
        there = False
    if not there:
        output.say(
            f"not there yet: {target.store.rstrip('/')}/{prompts.value.key}"
            f" ({output.size(len(prompts.payload))} of prompts, which a real submission puts there)"
        )


def _print_plan(decided: JobPlan, target: Target, form: str) -> None:
    if target.backend == "local":
        output.as_document(_plain(asdict(decided)), form)
        return
    manifest = manifests.render(decided, manifests.base(decided.kind))
    schema.check(manifest)
    output.as_document(manifest, form)


def _plain(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return only what is set, with lists for tuples."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in rows.items()
        if value not in ("", (), {})
    }


def _submit_locally(
    decided: JobPlan, root: Path, prompts: Prompts | None, settings: Settings, *, wait: bool
) -> None:
    from launcher import runs

    name, flags = decided.name, places.flags(settings)
    with inputs.in_store(root, prompts or Prompts(())):
        started = local.submit(decided, root, flags=flags)
    if started.resumed:
        output.say(f"local: resuming {name} from its last commit")
    else:
        output.say(f"local: started {name} in {started.files.run}, workers: {decided.npus}")
    output.data(name)
    if wait:
        runs.watch(started.files, started.offset, output.raw_aside, flags)
    else:
        output.say(f"local: follow it with `launcher logs {name} -f{flags}`")


def _submit_to_cluster(
    cluster: Kubernetes, decided: JobPlan, target: Target, prompts: Prompts | None, *, wait: bool
) -> None:
    if wait:
        raise Misconfigured(
            "--wait: this version waits for local runs only",
            f"submit without it, then `kubectl logs -f job/{decided.name}`",
        )
    manifest = manifests.render(decided, manifests.base(decided.kind))
    schema.check(manifest)
    if not target.store.startswith("file://"):
        cluster.dry_run_server(manifest)
        raise Misconfigured(
            f"store {target.store!r}: this version's jobs write to file:///path stores only",
            "--store file:///path of a volume in the base manifest; --dry-run prints the Job",
        )
    store = open_store(target.store)
    assert isinstance(store, FileStore)
    if prompts is not None and prompts.payload and not store.root.is_dir():
        raise Misconfigured(
            f"store {target.store}: is not mounted here, and {output.size(len(prompts.payload))} of"
            " prompts have to be put there",
            "mount it, or split the prompt file into several runs",
        )
    with inputs.in_store(store.root, prompts or Prompts(())):
        created = cluster.submit(decided, manifest)
    output.say(f"kubernetes: created job {created.name} in namespace {created.namespace}")
    output.data(created.name)


def _cores() -> int:
    """Return how many cores this process may use; macOS cannot tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
