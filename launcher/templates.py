"""Owns the pages' templates: data goes in such that none of it can become markup or code.

The templates are launcher/pages/. Must not know what a page shows.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

PAGES = Path(__file__).parent / "pages"

_SLOT = re.compile(r"\{\{(\w+)(?::([\w.]+))?\}\}")


def page(name: str, values: Mapping[str, str], data: Mapping[str, object] | None = None) -> str:
    """Return a template with its slots filled.

    `{{name}}` takes a text of `values`, escaped; `{{file:gallery.css}}` takes another file of the
    templates as it is, and `{{data:name}}` a JSON document of `data`, for inside a script.
    """

    def filled(slot: re.Match[str]) -> str:
        kind, what = slot[1], slot[2]
        if kind == "file":
            return (PAGES / what).read_text(encoding="utf-8")
        if kind == "data":
            return script_json((data or {})[what])
        return html.escape(values[kind])

    return _SLOT.sub(filled, (PAGES / name).read_text(encoding="utf-8"))


def script_json(document: object) -> str:
    """Return ASCII JSON that is safe inside a script element, and a JavaScript expression as well.

    Numbers that JSON has not (NaN, infinity) become null.
    """
    text = json.dumps(plain(document), separators=(",", ":"), allow_nan=False)
    # No end tag, comment or CDATA of HTML can begin without one of these.
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def plain(value: object) -> object:
    """Return the value as JSON can say it."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
