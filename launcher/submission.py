"""Owns the way of a submission: flags -> spec and target -> plan -> backend, in that order.

Must not decide anything about a run (plan.py, methods) nor act on the world (backends).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from jobs import layout
from jobs.specs import TINY, Spec
from jobs.stores import FileStore, Store
from launcher import (
    advice,
    inputs,
    loras,
    manifests,
    models,
    names,
    options,
    output,
    places,
    schema,
    storage,
)
from launcher.backends import local
from launcher.backends.kubernetes import Kubernetes
from launcher.backends.localrun import Files
from launcher.errors import LauncherError, Misconfigured, NameTaken, Unreachable, Usage
from launcher.inputs import Prompts, Upload
from launcher.methods import LOCAL_DEFAULT, Request, Resolved, resolve
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
        root = places.local_root(settings)
        target = places.local_target(settings)
    prompts = _prompts(kind, params)
    resolved = resolve(
        Request(
            kind=kind,
            flags=_flags(kind, params, prompts),
            sets=params["set_"] or (),
            spec_file=params["spec"],
            recipe=inputs.read_recipe(params["like"]) if params.get("like") else {},
            local=root is not None,
        )
    )
    if root is not None:
        _tell_defaults(resolved, settings)
    spec = models.pin(resolved.spec, target, local=root is not None)
    spec = spec if root is None else _for_this_machine(spec, resolved.origins, target)
    uploads = prompts.uploads if prompts else ()
    if spec.kind == "infer":
        inputs.check_only(spec, prompts)
        spec, more = loras.pin(spec, target, local=root is not None)
        uploads += more
    name = params["name"]
    if name is None and params["idempotent"]:
        raise Usage("--idempotent: a name that is made up is never used again", "give --name, too")
    if name is None:
        method, now = getattr(spec, "method", ""), datetime.now(UTC)
        name = names.fresh(kind, method, now=now, entropy=os.urandom(4))

    def decide() -> JobPlan:
        amounts = options.amounts(params)
        shapes = prompts.shapes if prompts else None
        return plan(spec, target, name=name, cores=_cores(), shapes=shapes, **amounts)

    if params["dry_run"]:
        _tell_uploads(uploads, target)
        _print_plan(decide(), spec, target, params["form"])
    elif root is not None:
        how = {key: params[key] for key in ("wait", "idempotent")}
        _submit_locally(decide(), root, uploads, settings, **how)
    else:
        # Asked before anything is decided: with no cluster at all, nothing else is worth saying.
        cluster = Kubernetes(target.context, target.namespace)
        decided = decide()
        manifest = _manifest(decided, spec, target)
        how = {key: params[key] for key in ("wait", "idempotent")}
        _submit_to_cluster(cluster, decided, manifest, settings, uploads, **how)


def _prompts(kind: Kind, params: Params) -> Prompts | None:
    if kind == "train":
        return None
    if params["prompts"] is not None:
        if params["like"] is not None:
            raise Usage("--like: has a prompt of its own", "leave --prompts out")
        return inputs.read_prompts(params["prompts"])
    if params["spec"] is None and params["like"] is None:
        raise Usage("--prompts: is missing", "--prompts FILE, with one prompt a line")
    return None


def _flags(kind: Kind, params: Params, prompts: Prompts | None) -> dict[str, object]:
    """Return the flags as keys of the spec."""
    flags = options.spec_flags(params, kind)
    if params.get("validation_prompt"):
        flags["validation_prompts"] = tuple(params["validation_prompt"])
    if prompts is not None:
        flags["prompts"] = prompts.value
    if params.get("lora") is not None:
        flags |= loras.parse(params["lora"])
    return flags


def _for_this_machine(spec: Spec, origins: Mapping[str, str], target: Target) -> Spec:
    """Return the spec with this machine's paths checked and absolute, and its model's sizes."""
    found = {
        key: inputs.place(key, value, origins[key], storage.access(target))
        for key, value in spec.model_dump(include=set(inputs.PLACES)).items()
        if value is not None
    }
    return models.fitted(spec.model_copy(update=found), origins)


def _tell_defaults(resolved: Resolved, settings: Settings) -> None:
    keys = [key for key, origin in resolved.origins.items() if origin == LOCAL_DEFAULT]
    rows = [f"{key}={TINY}" for key in keys]
    if not settings.target.store:
        keys.append("store")
        rows.append(f"store={places.LOCAL_STORE}")
    if rows:
        flags = ", ".join(f"--{key}" for key in keys)
        output.say(f"local: {' '.join(rows)} (defaults; see {flags})")


def _tell_graphs(decided: JobPlan) -> None:
    if found := decided.graphs:
        told = f"graphs to compile: {len(found)} ({', '.join(found)})"
        output.say(f"{told}; those in the store's cache are taken from there")


def _tell_uploads(uploads: Sequence[Upload], target: Target) -> None:
    for upload in uploads:
        what = (
            f"{target.store.rstrip('/')}/{upload.key}"
            f" ({output.size(upload.size)} of {upload.what}, which a real submission puts there)"
        )
        try:
            store = storage.of_target(target)
            with storage.asking(store):
                there = inputs.present(store, upload.key)
        except LauncherError as error:
            output.say(f"not looked for: {what}: {error.text}")
            continue
        if not there:
            output.say(f"not there yet: {what}")


def _print_plan(decided: JobPlan, spec: Spec, target: Target, form: str) -> None:
    if target.backend == "local":
        output.as_document(_plain(asdict(decided)), form)
    else:
        _tell_graphs(decided)
        output.as_document(_manifest(decided, spec, target), form)


def _manifest(decided: JobPlan, spec: Spec, target: Target) -> manifests.Manifest:
    """Return the Job, checked; tell what is likely to go wrong with it."""
    base = manifests.base(decided.kind)
    manifest = manifests.render(decided, base)
    schema.check(manifest)
    for warning in advice.warnings(spec, target, decided, base):
        output.say(f"warning: {warning}")
    return manifest


def _plain(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return only what is set, with lists for tuples."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in rows.items()
        if value not in ("", (), {})
    }


def _submit_locally(
    decided: JobPlan,
    root: Path,
    uploads: Sequence[Upload],
    settings: Settings,
    *,
    wait: bool,
    idempotent: bool,
) -> None:
    from launcher import runs

    name, flags = decided.name, places.flags(settings)
    store = storage.of_target(replace(settings.target, store=decided.environment["JOB_STORE"]))
    if storage.remote(store.url):
        _check_free(store, name, root)
    with inputs.in_store(store, uploads):
        started = local.submit(decided, root, flags=flags, idempotent=idempotent)
    if started.existed:
        output.say(f"local: there is already, with the same spec: {name}")
    elif started.resumed:
        output.say(f"local: resuming {name} from its last commit")
    else:
        where = str(started.files.run)
        if storage.remote(store.url):
            where += f", records in {store.url}/{name}"
        output.say(f"local: started {name} in {where}, workers: {decided.npus}")
        _tell_graphs(decided)
    output.data(name)
    if wait:
        runs.watch(started.files, started.offset, output.raw_aside, flags)
    else:
        output.say(f"local: follow it with `launcher logs {name} -f{flags}`")


def _submit_to_cluster(
    cluster: Kubernetes,
    decided: JobPlan,
    manifest: manifests.Manifest,
    settings: Settings,
    uploads: Sequence[Upload],
    *,
    wait: bool,
    idempotent: bool,
) -> None:
    there = _uploaded(settings.target, uploads)
    run = cluster.submit(decided, manifest, prepare=there, idempotent=idempotent)
    what = "there is already, with the same spec:" if run.existed else "created"
    output.say(f"kubernetes: {what} job {run.name} in namespace {run.namespace}")
    if not run.existed:
        _tell_graphs(decided)
    if run.waits:
        output.say(f"warning: its pods have to wait: {run.waits}")
    output.data(run.name)
    if wait:
        from launcher import clusterruns

        clusterruns.wait(cluster, run.name, settings)


def _uploaded(
    target: Target, uploads: Sequence[Upload]
) -> AbstractContextManager[None, bool | None]:
    """Return what puts files into the store around the create, if there is a need to."""
    if not uploads:
        return nullcontext()  # this machine need not reach the store
    store = storage.of_target(target)
    if isinstance(store, FileStore) and not store.root.is_dir():
        sizes = [f"{output.size(upload.size)} of {upload.what}" for upload in uploads]
        raise Misconfigured(
            f"store {target.store}: is not mounted here, and {', '.join(sizes)} have to be put"
            " there",
            "mount it, split the prompt file into several runs, or name a LoRA that is in a store",
        )
    # Where the answer is lost the Job may exist, and would miss them.
    return inputs.in_store(store, uploads, keep=(Unreachable, KeyboardInterrupt))


def _check_free(store: Store, name: str, root: Path) -> None:
    """Refuse a name that is another machine's; the job itself would find it out late.

    Raises:
        NameTaken: the store has such a run, and it was not submitted from here.
        Unreachable, Forbidden, Misconfigured: the store cannot be asked, and so not be used.
    """
    with storage.asking(store):
        taken = next(iter(store.list(layout.key(name, ""))), None) is not None
    if taken and not Files(root / name).plan.is_file():
        raise NameTaken(
            f"run {name!r}: exists in {store.url} and was not submitted from {root}",
            "choose another --name",
        )


def _cores() -> int:
    """Return how many cores this process may use; macOS cannot tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
