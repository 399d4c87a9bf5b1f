"""Owns what a run does: method, tiny overlay, --spec, --like, --set, flags -> spec, and origins.

Must not know where a run goes (settings.py), and must not judge values: jobs.specs does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs.errors import BadSpec
from jobs.specs import TINY, InferSpec, Spec, TrainSpec, parse
from launcher.errors import Misconfigured, NotFound, Usage
from launcher.settings import DEFAULT, Target, near

LOCAL_DEFAULT = "default of the local backend"
DEFAULT_METHOD = "lora"
_FLAGS = {
    "lora": "--lora RUN",
    "lora_step": "--lora RUN@STEP",
    "lora_weight": "--lora RUN:WEIGHT",
    "validation_prompts": "--validation-prompt",
    "learning_rate": "--learning-rate",
    "batch_size": "--batch-size",
    "lora_rank": "--rank",
    "save_every": "--save-every",
}
"""Keys of the spec whose flag is called something else."""
_FOLDER = Path(__file__).parent
_SPECS: dict[str, type[TrainSpec] | type[InferSpec]] = {"train": TrainSpec, "infer": InferSpec}

Kind = Literal["train", "infer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the person asked for, before any default."""

    kind: Kind
    flags: Mapping[str, object]
    """Key of the spec -> value, of the flags that were given."""
    sets: Sequence[str] = ()
    """`key=value` texts of --set, in order."""
    spec_file: Path | None = None
    recipe: Mapping[str, object] = field(default_factory=dict)
    """Key of the spec -> value, of the picture that --like names."""
    local: bool = False
    """Whether model and data default to `tiny`."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A spec and, for each of its keys, the place its value comes from."""

    spec: Spec
    origins: Mapping[str, str]


def resolve(request: Request) -> Resolved:
    """Return the spec: defaults < method < tiny overlay < --spec file < --like < --set < flags.

    Raises:
        NotFound: the --spec file does not exist.
        Usage: a --set without `=`, or of the prompts.
        Misconfigured: an unknown key, or a value that jobs.specs refuses.
    """
    chosen = _chosen(request)
    layers: list[tuple[str, Mapping[str, Any]]] = []
    method = str(chosen.get("method", ("", DEFAULT_METHOD))[1])
    if request.kind == "train":
        layers.append((f"method {method}", _method(method)))
    if request.local:
        shipped = {"model": TINY} | ({"data": TINY} if request.kind == "train" else {})
        layers.append((LOCAL_DEFAULT, shipped))
    values = {key: (origin, value) for origin, rows in layers for key, value in rows.items()}
    if (values | chosen).get("model", ("", ""))[1] == TINY:
        overlay = _read(_FOLDER / f"{TINY}.yaml")
        parts = ("train", method) if request.kind == "train" else ("infer",)
        for part in parts:
            values |= {key: ("model tiny", value) for key, value in overlay.get(part, {}).items()}
    values |= chosen
    try:
        spec = parse({key: value for key, (_, value) in values.items()} | {"kind": request.kind})
    except BadSpec as error:
        raise Misconfigured(str(error), _blame(str(error), values)) from error
    origins = {key: values.get(key, (DEFAULT, None))[0] for key in type(spec).model_fields}
    return Resolved(spec, origins)


def is_default(origin: str) -> bool:
    """Say whether nobody chose a value that comes from there."""
    return origin == DEFAULT or origin.startswith("method ")


def _chosen(request: Request) -> dict[str, tuple[str, object]]:
    """Return key -> (origin, value) of all that the person set, the strongest last."""
    chosen: dict[str, tuple[str, object]] = {}
    if request.spec_file is not None:
        for key, value in _document(request.spec_file, request.kind).items():
            _known(key, request.kind, f"{request.spec_file}: {key}")
            chosen[key] = (str(request.spec_file), value)
    chosen |= {key: ("--like", value) for key, value in request.recipe.items()}
    for text in request.sets:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise Usage(f"--set {text!r}: wants key=value", "for example --set save_every=100")
        _known(key, request.kind, f"--set {key}")
        if key == "prompts":  # --prompts would win over it without a word
            raise Usage("--set prompts: prompts come from a file", "--prompts FILE")
        chosen[key] = ("--set", _typed(key, value, request.kind))
    for key, flag in request.flags.items():
        chosen[key] = (_FLAGS.get(key, f"--{key}"), flag)
    return chosen


def _known(key: str, kind: Kind, where: str) -> None:
    known = [name for name in _SPECS[kind].model_fields if name != "kind"]
    if key in known:
        return
    if key in Target.__dataclass_fields__:
        raise Misconfigured(
            f"{where}: is a setting of launcher.toml, no key of the spec",
            f"LAUNCHER_{key.upper()}=... sets it for one run",
        )
    raise Misconfigured(f"{where}: no such key in the spec of {kind}", near(key, known))


def _typed(key: str, text: str, kind: Kind) -> object:
    """Return the text of a --set as a value; jobs.specs itself reads numbers from text."""
    wanted = str(_SPECS[kind].model_fields[key].annotation)
    if text.strip() == "null" and "None" in wanted:
        return None
    if "tuple" not in wanted or not text.strip().startswith(("[", "{")):
        return text
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Misconfigured(
            f"--set {key}: is not a YAML list or mapping", f'--set \'{key}=["a", "b"]\''
        ) from error


def _method(name: str) -> dict[str, Any]:
    names = sorted(path.stem for path in _FOLDER.glob("*.yaml") if path.stem != TINY)
    if name not in names:
        raise Misconfigured(f"method: no such method {name!r}", near(name, names))
    return _read(_FOLDER / f"{name}.yaml")


def _document(path: Path, kind: Kind) -> dict[str, Any]:
    """Return a --spec file's keys; a run's own spec.json is one too."""
    rows = _read(path)
    if isinstance(rows.get("spec"), dict):
        rows = rows["spec"]
    found = rows.pop("kind", kind)
    if found != kind:
        raise Misconfigured(f"{path}: is a spec of {found!r}, not of {kind}")
    return rows


def _read(path: Path) -> dict[str, Any]:
    import yaml

    hint = "a spec is a YAML mapping of keys, such as `steps: 1000`"
    try:
        found = yaml.safe_load(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file", hint) from error
    except OSError as error:
        raise Misconfigured(f"{path}: cannot be read: {error.strerror}", hint) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path}: is not YAML: {' '.join(str(error).split())}", hint) from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise Misconfigured(f"{path}: is not a mapping of keys", hint)
    return found


def _blame(text: str, values: Mapping[str, tuple[str, object]]) -> str:
    """Return where the values that `text` complains about come from."""
    wrong = {part.partition(":")[0].split(".")[0] for part in text.split("; ")}
    rows = [f"{key} comes from {values[key][0]}" for key in sorted(wrong & values.keys())]
    return ", ".join(rows)
