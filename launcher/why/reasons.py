"""Owns the shape of an answer to `why is it not running`. Pure; must not find one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a run, or one pod of it, is where it is."""

    word: str
    """Short and stable, for programs: `no-room`, `image`, `quota`, ..."""
    line: str
    """For people, one line, without the run's name."""
    next_step: str = ""
    """What to do; empty where there is nothing to do."""
    stuck: bool = False
    """Whether waiting alone never helps: somebody has to do something."""
