"""Owns how a state that is watched is shown: in the place of the one before, on a terminal."""

from __future__ import annotations

import json
import sys

from launcher import output


def show(state: object, *, first: bool) -> None:
    """Show a state to stdout.

    Args:
        state: a text, or a document that becomes one line of JSON.
        first: nothing was shown before.
    """
    if not isinstance(state, str):
        output.data(json.dumps(state))
    elif sys.stdout.isatty():
        output.raw(b"\033[H\033[2J")  # ECMA-48: cursor home, erase the display
        output.data(state)
    else:
        output.data(("" if first else "\n") + state)
