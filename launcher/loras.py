"""Owns --lora: a run, a file or an address -> keys of the spec, pinned and checked at submission.

What is pinned is what the job uses whenever it starts: a run's step, a file's bytes. Must not
decide where a run goes, nor read more of a LoRA file than names and shapes.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from jobs import adapters, commits, layout, tensors
from jobs.errors import BadSpec
from jobs.specs import InferSpec
from jobs.stores import FileStore, Store, sha256_of
from launcher import output, records, storage
from launcher.errors import Forbidden, Misconfigured, NotFound, Unreachable, Usage
from launcher.inputs import Upload
from launcher.settings import Target

_LORA = re.compile(
    r"(?P<what>.+?)(?:@(?P<step>\d+))?(?::(?P<weight>[-+]?\d+(?:\.\d*)?|[-+]?\.\d+))?"
)
_RUN = re.compile(r"[a-z0-9-]+")
FORMS = "RUN[@step][:weight], FILE.safetensors[:weight] or s3://bucket/FILE.safetensors[:weight]"
OTHER_MODEL = "it was made for another model, or the model is not the one it was made for"


def parse(text: str) -> dict[str, object]:
    """Return the keys of the spec that --lora stands for.

    Raises:
        Usage: the text has none of FORMS.
        NotFound: there is no such file.
        Misconfigured: it is a folder without a LoRA.
    """
    found = _LORA.fullmatch(text)
    what = found["what"] if found else ""
    if what.startswith(("http://", "https://")):
        raise Usage(f"--lora {text!r}: is a web address", "fetch the file, and name it")
    file = "/" in what or what.endswith(".safetensors")
    if found is None or (file and found["step"]) or not (file or _RUN.fullmatch(what)):
        raise Usage(f"--lora {text!r}: wants {FORMS}", "for example --lora cat@500:0.8")
    step, weight = found["step"], found["weight"]
    if file and not storage.remote(what):
        what = str(_file(what))
    # Also what it does not say: a --spec file or a picture's recipe may speak of another LoRA.
    rows = {"lora": what, "lora_step": int(step) if step else None, "lora_sha256": None}
    return rows | ({"lora_weight": float(weight)} if weight else {})


def _file(text: str) -> Path:
    """Return the absolute path of a LoRA file, or of the one in a folder, as diffusers saves it."""
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError:  # no such ~user
        path = Path(text)
    try:
        if path.is_dir():
            path /= layout.LORA_FILE
            if not path.is_file():
                raise Misconfigured(f"--lora {text}: holds no {layout.LORA_FILE}", "name the file")
        if not path.is_file():
            raise NotFound(f"--lora {text}: no such file", f"--lora wants {FORMS}")
    except OSError as error:  # longer than a name may be
        told = f"--lora {text[:80]}...: {error.strerror}"
        raise NotFound(told, f"--lora wants {FORMS}") from error
    return path


def pin(spec: InferSpec, target: Target, *, local: bool) -> tuple[InferSpec, tuple[Upload, ...]]:
    """Return the spec with its LoRA decided, and what has to be in the store for it.

    Args:
        spec: as it was asked for; `model` is a path of this machine, if it is one.
        target: whose store it is.
        local: whether the run will be on this machine, so that its store must answer.

    Raises:
        NotFound: no such run, file or committed checkpoint.
        Misconfigured: the run has no LoRA, the file is none, or it does not fit the model.
        Forbidden, Unreachable: the store cannot be asked, and the step is not known.
    """
    if spec.lora is None:
        return spec, ()
    if spec.lora.startswith("/"):
        return _of_file(spec, Path(spec.lora))
    try:
        if storage.remote(spec.lora):
            return _of_address(spec, target), ()
        store = storage.of_target(target)
        if not local and isinstance(store, FileStore) and not store.root.is_dir():
            raise Unreachable(f"store {target.store}: is not mounted here")
        with storage.asking(store):
            stored = spec.lora.startswith(layout.LORAS)
            return (_of_store if stored else _of_run)(spec, store), ()
    except (Unreachable, Forbidden) as error:
        if local:
            raise
        if spec.lora_step is None and "/" not in spec.lora:
            hint = f"--lora {spec.lora}@STEP names a step, and the job looks for it"
            raise type(error)(f"--lora {spec.lora}: {error.text}", hint) from error
        output.say(f"warning: lora {spec.lora} was not looked at: {error.text}")
        return spec, ()


def _of_file(spec: InferSpec, path: Path) -> tuple[InferSpec, tuple[Upload, ...]]:
    if not path.is_file():
        raise NotFound(f"--lora {path}: no such file", f"--lora wants {FORMS}")
    _check(spec, path, path.name)
    digest = sha256_of(path)
    upload = Upload(layout.lora_key(digest, path.name), path, "LoRA")
    changed = {"lora": upload.key, "lora_sha256": None}
    return spec.model_copy(update=changed), (upload,)


def _of_address(spec: InferSpec, target: Target) -> InferSpec:
    """Return the spec with the digest of what lies at the address now."""
    assert spec.lora is not None
    if spec.lora_sha256 is not None:
        return spec
    parent, _, name = spec.lora.rpartition("/")
    store = storage.opened(parent, storage.access(target))
    with tempfile.TemporaryDirectory() as folder, storage.asking(store):
        path = Path(folder) / "lora.safetensors"
        if not any(entry.key == name for entry in store.list(name)):
            raise NotFound(
                f"--lora {spec.lora}: there is nothing in the store", f"--lora wants {FORMS}"
            )
        store.get(name, path)
        _check(spec, path, name)
        return spec.model_copy(update={"lora_sha256": sha256_of(path)})


def _of_store(spec: InferSpec, store: Store) -> InferSpec:
    assert spec.lora is not None
    if not any(entry.key == spec.lora for entry in store.list(spec.lora)):
        raise NotFound(
            f"lora {spec.lora}: is not in {store.url}", "--lora FILE puts it there again"
        )
    return spec


def _of_run(spec: InferSpec, store: Store) -> InferSpec:
    run, step = spec.lora, spec.lora_step
    assert run is not None
    if next(iter(store.list(layout.key(run, ""))), None) is None:
        raise NotFound(
            f"--lora {run!r}: no such run in {store.url}", "launcher list --store shows the runs"
        )
    found = records.document(store, layout.key(run, layout.SPEC)).get("spec")
    found = found if isinstance(found, dict) else {}
    if found.get("kind", "train") != "train" or found.get("method") == "vanilla":
        what = found.get("method", found.get("kind"))
        hint = f"--model {run} paints with it" if what == "vanilla" else ""
        raise Misconfigured(f"--lora {run!r}: is a run of {what}, which has no LoRA", hint)
    steps = commits.committed_steps(store, run)
    if not steps:
        raise NotFound(f"--lora {run!r}: has no committed checkpoint yet", f"launcher status {run}")
    if step is not None and step not in steps:
        shown = ", ".join(str(step) for step in steps[-8:])
        raise NotFound(f"--lora {run}@{step}: no such committed checkpoint", f"there are {shown}")
    step = step or steps[-1]
    key = layout.key(run, layout.CHECKPOINTS, layout.step_name(step), layout.LORA_FILE)
    if isinstance(store, FileStore) and modules(spec.model):
        _check(spec, store.root / key, f"{run}@{step}")
    return spec.model_copy(update={"lora_step": step})


def _check(spec: InferSpec, path: Path, name: str) -> None:
    """Compare a LoRA file with the model, where that is a folder here; else only read its names.

    Raises:
        Misconfigured: it is no LoRA file, or does not fit; the first key that does not is named.
    """
    known = modules(spec.model)
    try:
        head = tensors.header(path, f"--lora {name}")
        if known:
            adapters.updates(head.shapes, known, f"--lora {name}", head.metadata)
        else:
            adapters.judge(head.shapes, f"--lora {name}")
    except BadSpec as error:
        raise Misconfigured(str(error), OTHER_MODEL if known else "") from error
    except FileNotFoundError as error:
        raise NotFound(f"--lora {name}: {path} is missing") from error


def modules(model: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a LoRA can change, of a pipeline folder here; else nothing."""
    found: dict[str, tuple[int, ...]] = {}
    folder = Path(model)
    if not (folder.is_absolute() and folder.is_dir()):
        return found
    try:
        for part in adapters.PARTS:
            for path in (folder / part).glob("*.safetensors"):
                for name, shape in tensors.header(path, str(path)).shapes.items():
                    if name.endswith(".weight") and len(shape) in (2, 4):
                        found[f"{part}.{name.removesuffix('.weight')}"] = shape
    except (BadSpec, OSError):
        return {}  # the job tells what is wrong with a model
    return found
