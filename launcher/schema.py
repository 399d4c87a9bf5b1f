"""Owns the strict check of a rendered manifest against the Kubernetes API's Job, without a cluster.

Must not change a manifest. The official client's `V1Job.model_validate` would do, but importing it
costs 0.9 s (129 models and the whole client), most of what a dry run may take. So `job_schema.json`
holds the fields and types of those models, a test holds both equal, and another lets both judge the
same damaged manifests. Two things are stricter than in the client: only wire names count
(`backoffLimit`, never `backoff_limit`), and times are text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.errors import Misconfigured

FILE = Path(__file__).with_name("job_schema.json")
"""Model -> wire name -> type: `[]` a list of, `{}` a mapping of text to, a final `!` required."""
ROOT = "V1Job"
_SHOWN = 4
_WANTED: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text, in quotes where YAML reads something else"),
    "time": ((str,), "a time as text, in quotes"),
    "int": ((int,), "a whole number"),
    "bool": ((bool,), "true or false"),
    "int|str": ((int, str), "a whole number or text"),
}


def check(manifest: Mapping[str, Any]) -> None:
    """Check that the API server would read every field of the Job as it was meant.

    Raises:
        Misconfigured: unknown or missing fields, or values of a wrong type; each is named.
    """
    models: dict[str, dict[str, str]] = json.loads(FILE.read_text("ascii"))
    found = [f"{path}: {what}" for path, what in _model(models, ROOT, manifest, "")]
    for key, wanted in (("apiVersion", "batch/v1"), ("kind", "Job")):
        if manifest.get(key) != wanted:
            found.append(f"{key}: must be {wanted}, not {manifest.get(key)!r}")
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        field = found[0].partition(":")[0]
        raise Misconfigured(
            f"manifest: {'; '.join(found[:_SHOWN])}{more}",
            f"kubectl explain job.{_without_items(field).rpartition('.')[0]}".rstrip("."),
        )


Problems = Iterator[tuple[str, str]]
Models = Mapping[str, Mapping[str, str]]


def _model(models: Models, name: str, value: object, path: str) -> Problems:
    if not isinstance(value, Mapping):
        yield path or "Job", f"wants fields, not {_short(value)}"
        return
    fields = models[name]
    for key, kind in fields.items():
        if kind.endswith("!") and value.get(key) is None:
            yield _join(path, key), "is missing"
    for key, item in value.items():
        where = _join(path, key)
        if key not in fields:
            yield where, f"no such field{_meant(key, fields)}"
        elif item is not None:  # null is the same as leaving the field out
            yield from _value(models, fields[key].removesuffix("!"), item, where)


def _value(models: Models, kind: str, value: object, path: str) -> Problems:
    if kind.startswith("[]"):
        if not isinstance(value, list):
            yield path, f"wants a list, not {_short(value)}"
            return
        for at, item in enumerate(value):
            name = item.get("name", at) if isinstance(item, Mapping) else at
            yield from _value(models, kind[2:], item, f"{path}[{name}]")
    elif kind.startswith("{}"):
        if not isinstance(value, Mapping):
            yield path, f"wants a mapping, not {_short(value)}"
            return
        for key, item in value.items():
            if not isinstance(key, str):
                yield path, f"wants text for a key, not {_short(key)}"
            elif kind != "{}any":
                yield from _value(models, kind[2:], item, f"{path}[{key}]")
    elif kind in _WANTED:
        types, wanted = _WANTED[kind]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            yield path, f"wants {wanted}, not {_short(value)}"
    else:
        yield from _model(models, kind, value, path)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _without_items(path: str) -> str:
    """Return the path as kubectl explain wants it, without what stands in brackets."""
    import re

    return re.sub(r"\[[^]]*\]", "", path)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _meant(key: object, fields: Mapping[str, str]) -> str:
    import difflib

    near = difflib.get_close_matches(str(key), fields, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
