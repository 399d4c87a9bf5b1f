"""The contract both sides read: strict, frozen, and safe to carry in an environment variable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs import errors, specs
from jobs.specs import InferSpec, PromptRow, TrainSpec


def test_unknown_keys_and_bad_values_are_all_named() -> None:
    with pytest.raises(errors.BadSpec) as caught:
        specs.parse({"kind": "train", "stesp": 3, "steps": 0, "method": "dreambooth"})
    text = str(caught.value)
    assert "stesp: unknown key" in text
    assert "steps: Input should be greater than or equal to 1, not 0" in text
    assert "'dreambooth'" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"kind":"serve"}', '{"kind":"infer","prompts":[]}']
)
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(errors.BadSpec):
        specs.parse_json(text)


def test_specs_are_frozen() -> None:
    with pytest.raises(ValidationError):
        TrainSpec().steps = 3  # type: ignore[misc]


@pytest.mark.parametrize("spec", [TrainSpec, InferSpec, PromptRow, specs.PromptFile])
def test_every_field_is_documented(spec: type[specs.Frozen]) -> None:
    undocumented = [n for n, f in spec.model_fields.items() if n != "kind" and not f.description]
    assert undocumented == []


@given(st.text(min_size=1))
def test_any_prompt_survives_the_way_through_the_environment(text: str) -> None:
    try:
        spec = InferSpec(prompts=(PromptRow(line=1, prompt=text),))
        encoded = specs.to_json(spec)
    except (ValidationError, ValueError):  # lone surrogates are no text
        return
    assert "$" not in encoded
    assert specs.parse_json(encoded) == spec


def test_every_exit_code_has_one_class() -> None:
    raised = {cls.code for cls in errors.BY_EXIT.values()} | {errors.JobError.code, 0}
    assert raised | {137} == set(errors.BY_CODE)
    assert errors.FINAL == (65, 70, 74, 78)
    assert errors.FREE == (75,)
