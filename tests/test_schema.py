"""The compact schema against the official client's models, which it stands for."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import typing
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from launcher import manifests, schema
from launcher.errors import Misconfigured

PLAIN = {str: "str", int: "int", bool: "bool", datetime: "time", Any: "any"}


def kind_of(annotation: Any, todo: list[type[BaseModel]]) -> str:
    """Translate a type of the client's models; models met on the way are added to `todo`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return kind_of(args[0], todo)
    if origin is typing.Union:
        rest = [arg for arg in args if arg is not type(None)]
        return "|".join(kind_of(arg, todo) for arg in rest)
    if origin is list:
        return "[]" + kind_of(args[0], todo)
    if origin is dict:
        return "{}" + kind_of(args[1], todo)
    if annotation in PLAIN:
        return PLAIN[annotation]
    assert issubclass(annotation, BaseModel), annotation
    todo.append(annotation)
    return annotation.__name__


def compiled() -> dict[str, dict[str, str]]:
    """Return the schema as the installed client has it."""
    from kubernetes.client.models.v1_job import V1Job

    todo: list[type[BaseModel]] = [V1Job]
    models: dict[str, dict[str, str]] = {}
    while todo:
        model = todo.pop()
        if model.__name__ not in models:
            assert model.model_config["extra"] == "forbid"
            models[model.__name__] = {
                field.serialization_alias or field.alias or name: kind_of(field.annotation, todo)
                + ("!" if field.is_required() else "")
                for name, field in model.model_fields.items()
            }
    return dict(sorted(models.items()))


def test_the_file_holds_what_the_official_client_holds() -> None:
    models = compiled()
    if os.environ.get("UPDATE_GOLDEN"):
        rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(models[name])}" for name in models)
        schema.FILE.write_text(f"{{\n{rows}\n}}\n", "ascii")
    assert json.loads(schema.FILE.read_text("ascii")) == models


@pytest.mark.parametrize("kind", ["train", "infer"])
def test_the_bases_pass(kind: str) -> None:
    schema.check(manifests.base(kind))


def damaged(change: typing.Callable[[dict[str, Any]], None]) -> Misconfigured:
    manifest = copy.deepcopy(manifests.base("train"))
    change(manifest)
    with pytest.raises(Misconfigured) as caught:
        schema.check(manifest)
    assert "\n" not in caught.value.text + caught.value.hint
    return caught.value


def test_an_unknown_field_is_named_with_what_was_meant() -> None:
    error = damaged(lambda m: m["spec"].update(backofLimit=3))
    assert error.text == "manifest: spec.backofLimit: no such field (did you mean backoffLimit?)"
    assert error.hint == "kubectl explain job.spec"
    assert error.code == 78


def test_a_number_where_kubernetes_wants_text_is_named_with_its_container() -> None:
    def change(manifest: dict[str, Any]) -> None:
        container = manifest["spec"]["template"]["spec"]["containers"][0]
        container["resources"]["requests"]["cpu"] = 16

    error = damaged(change)
    where = "spec.template.spec.containers[main].resources.requests[cpu]"
    assert error.text.startswith(f"manifest: {where}: wants text")
    assert error.text.endswith("not 16")


def test_true_is_not_a_number() -> None:
    assert damaged(lambda m: m["spec"].update(completions=True)).text.endswith("number, not True")


def test_a_missing_field_and_the_wrong_object_are_both_told() -> None:
    def change(manifest: dict[str, Any]) -> None:
        del manifest["spec"]["template"]
        manifest["kind"] = "Pod"

    text = damaged(change).text
    assert "spec.template: is missing" in text
    assert "kind: must be Job, not 'Pod'" in text


def test_a_long_list_of_problems_is_cut() -> None:
    error = damaged(lambda m: m["spec"].update({f"x{i}": i for i in range(9)}))
    assert error.text.endswith("; and 5 more")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [path] * bool(path) + [p for k, item in items for p in places(item, (*path, k))]


PLACES = places(manifests.base("train"))
# Not text for a time, nor snake_case: there the schema is stricter than the client, on purpose.
VALUES = st.sampled_from(
    ["x", "", 7, -1, True, None, 1.5, [], {}, ["x"], [None], {"x": "y"}, {"name": "n"}]
)


@settings(max_examples=400, deadline=None)
@given(place=st.sampled_from(PLACES), value=VALUES, act=st.sampled_from(["set", "drop", "add"]))
def test_it_judges_as_the_official_client_does(
    place: tuple[Any, ...], value: Any, act: str
) -> None:
    from kubernetes.client.models.v1_job import V1Job

    manifest = copy.deepcopy(manifests.base("train"))
    here: Any = manifest
    for key in place[:-1]:
        here = here[key]
    if act == "drop":
        del here[place[-1]]
    elif act == "add" and isinstance(here, dict):
        here["foreign"] = value
    else:
        here[place[-1]] = value
    if (manifest.get("apiVersion"), manifest.get("kind")) != ("batch/v1", "Job"):
        return  # the client does not look at what these say

    def accepts(judge: typing.Callable[[Any], object], error: type[Exception]) -> bool:
        try:
            judge(manifest)
        except error:
            return False
        return True

    ours, theirs = (
        accepts(schema.check, Misconfigured),
        accepts(V1Job.model_validate, ValidationError),
    )
    assert ours == theirs


def test_checking_does_not_load_the_client() -> None:
    code = (
        "import sys; from launcher import manifests, schema; schema.check(manifests.base('train'));"
        "print([m for m in sys.modules if m.split('.')[0] in ('kubernetes', 'pydantic', 'boto3')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
