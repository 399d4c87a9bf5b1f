"""Owns lengths of time as people type them: `90m`, `8h`, `1d12h` -> seconds. Pure.

Imported for `--help` and completion: must not load anything heavy.
"""

from __future__ import annotations

import re

from launcher.errors import Usage

LONGEST = 3650 * 86400
"""Seconds; ten years. Kubernetes holds them as 32 bits, and more is a slip of the finger."""
_TEXT = re.compile(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", re.ASCII)
_UNITS = (86400, 3600, 60, 1)
_HINT = "a number with its unit: 90m, 8h, 7d or 1d12h"


def seconds(text: str, flag: str, *, least: int = 1) -> int:
    """Return the seconds that a duration has; a bare 0 needs no unit.

    Args:
        text: what was typed.
        flag: where, for messages.
        least: the shortest that makes sense there, in seconds.

    Raises:
        Usage: it is no duration, or too short or too long.
    """
    found = _TEXT.fullmatch(text)
    if text != "0" and (not text or found is None):
        raise Usage(f"{flag} {text!r}: is no duration", f"{flag} wants {_HINT}")
    total = 0
    if found is not None:
        parts = zip(found.groups(), _UNITS, strict=True)
        total = sum(int(number or 0) * unit for number, unit in parts)
    if total < least:
        raise Usage(f"{flag} {text!r}: is too short", f"{flag} wants {_HINT}")
    if total > LONGEST:
        raise Usage(f"{flag} {text!r}: is more than ten years", f"{flag} wants {_HINT}")
    return total
