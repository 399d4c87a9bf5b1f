"""Owns what keeps `--help`, completion and each start short: what Typer would do needlessly.

Must not know any verb.
"""

import gc
import os
import sys
from typing import Any

COMPLETION_VARIABLE = "_LAUNCHER_COMPLETE"
"""How a shell asks for completions (click)."""


def collect_rarely() -> None:
    """Let Python look for cycles a hundredth as often as it would.

    It looks again and again while modules are loaded and long lists are parsed, and neither leaves
    any: measured, a tenth of a verb's time, and half of a list's of 20,000 objects.
    """
    gc.set_threshold(100_000, 20, 20)


def spare_untyped_values() -> None:
    """Let Typer check only what was typed.

    It checks values with pydantic, which costs more than all the rest of a help text, and checks
    flags that nobody gave as well. A completion, for which the shell waits at each key, runs
    nothing and so has nothing to check.
    """
    from typer.core import TyperArgument, TyperOption

    completing = COMPLETION_VARIABLE in os.environ
    if completing:
        sys.modules["rich"] = None  # type: ignore[assignment]  # would strip markup we don't use
    for kind in (TyperArgument, TyperOption):
        check: Any = kind.process_value

        def process_value(self: Any, ctx: Any, value: Any, check: Any = check) -> Any:
            if completing:
                return value
            if value is None and not self.required:
                return self.callback(ctx, self, value) if self.callback else value
            return check(self, ctx, value)

        kind.process_value = process_value  # type: ignore[method-assign]
