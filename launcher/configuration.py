"""Owns the verb `config`: settings and spec, each value with where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from launcher import output, settings
from launcher.settings import Settings


def print_example() -> None:
    """Print a launcher.toml of the defaults."""
    output.data(settings.example().rstrip("\n"))


def show(found: Settings, method: str | None, *, as_json: bool) -> None:
    """Print the target, and the spec that a method leads to when one is named.

    Raises:
        Misconfigured: the method file is not a spec.
    """
    parts = {"target": _rows(asdict(found.target), found.origins)}
    if method is not None:
        from launcher.methods import Request, resolve

        local = found.target.backend == "local"
        resolved = resolve(Request(kind="train", flags={"method": method}, local=local))
        parts["spec"] = _rows(resolved.spec.model_dump(mode="json"), resolved.origins)
    if as_json:
        output.as_json(parts)
        return
    rows = [
        (f"{part}.{key}", _shown(row["value"]), str(row["from"]))
        for part, values in parts.items()
        for key, row in values.items()
    ]
    output.data(output.table(("KEY", "VALUE", "FROM"), rows))


Rows = dict[str, dict[str, object]]


def _rows(values: dict[str, object], origins: Mapping[str, str]) -> Rows:
    return {
        key: {"value": value, "from": origins.get(key, settings.DEFAULT)}
        for key, value in values.items()
        if key != "kind"
    }


def _shown(value: object) -> str:
    import json

    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
