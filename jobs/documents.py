"""Owns the form of the documents that launcher and container both read: frozen, no unknown key.

Must not know what stands in one. Imports only pydantic and the standard library.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

Precision = Literal["fp16", "bf16", "fp32"]


class Frozen(BaseModel):
    """Immutable; an unknown key is an error, never a silent no-op."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def problems(error: ValidationError) -> str:
    """Return pydantic's findings on one line: `key: what is wrong; key: what is wrong`."""
    rows = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"] if part not in ("train", "infer"))
        what = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            what = "unknown key"
        elif item["type"] == "tuple_type":
            what = f"should be a list, such as [{item['input']!s:.80}], not {item['input']!r:.80}"
        elif item["type"] != "missing":
            what = f"{what}, not {item['input']!r:.80}" if where else what
        rows.append(f"{where or 'spec'}: {what}")
    return "; ".join(rows)
