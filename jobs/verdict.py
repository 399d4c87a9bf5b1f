"""Owns what the end of an attempt means: the workers' summaries -> result, their end -> exit code.

Must not start, stop or wait for anything.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs import cgroups, layout
from jobs.attempt import Attempt
from jobs.claims import check_claim
from jobs.errors import BY_CODE, BY_EXIT, FINAL, JobError, Killed, Stopped, Unavailable
from jobs.history import now, wall_seconds
from jobs.outbox import write_whole
from jobs.results import document, finished, has_result

log = logging.getLogger("jobs.verdict")

END_SECONDS = 10.0
"""For the record of the end; a store that is away must not hold a pod that is to be gone."""


def conclude(attempt: Attempt) -> None:
    """Make the run's result of the workers' summaries, if all of them have got to their end.

    One of several nodes that paint makes its part of it (shares.py makes the whole).
    """
    found = attempt.outbox.summaries()
    expected = 1 if attempt.spec.kind == "train" else attempt.env.workers
    if len(found) < expected:
        return
    if attempt.claim.node is not None:
        part = {"uid": attempt.claim.uid, "summaries": found}
        write_whole(attempt.outbox.root / layout.PART, json.dumps(part, indent=1).encode())
        return
    result: dict[str, object] = {"run": attempt.env.run, **found[0]}
    if attempt.spec.kind == "infer":
        result = painted(attempt.env.run, found)
    elif result.get("loss") is None:  # this attempt found every step done: the one before told
        row = _last_row(attempt.outbox.root / layout.METRICS)
        result |= {key: row.get(key) for key in ("loss", "ms_per_step", "img_s")}
    if attempt.spec.kind == "train":
        seconds = wall_seconds(attempt.history, now())
        result |= {"attempts": attempt.claim.epoch}
        result |= {} if seconds is None else {"wall_s": round(seconds, 1)}
    write_whole(attempt.outbox.root / layout.RESULT, json.dumps(result, indent=1).encode())


def painted(run: str, found: list[dict[str, Any]]) -> dict[str, object]:
    """Return the result of an inference run of its workers' summaries.

    Paces are those of workers that paint side by side; nodes may have begun one after another.

    Raises:
        JobError: pictures are neither there nor known to have failed.
    """
    count = sum(row["painted"] for row in found)
    failures = sorted(
        (row for part in found for row in part["failures"]),
        key=lambda row: (row["line"], row["image"]),
    )
    asked, restored = found[0]["asked"], sum(row["before"] for row in found)
    if restored + count + len(failures) != asked:
        raise JobError(
            f"pictures: {restored} were there, {count} were painted, {len(failures)} failed, and "
            f"{asked} were asked for"
        )
    seconds = max(row["seconds"] for row in found)
    whole = max(row["start_s"] + row["compile_s"] + row["seconds"] for row in found)
    return {
        "kind": "infer",
        "run": run,
        "pictures": restored + count,
        "asked": asked,
        "failed": sorted({row["line"] for row in failures}),
        "failures": failures,
        "cut_prompts": found[0]["cut"],
        "compile_s": round(max(row["compile_s"] for row in found), 1),
        "s_per_picture": round(seconds / count, 3) if count else None,
        "img_s": round(count / seconds, 3) if count else None,
        "img_s_overall": round(count / whole, 3) if count else None,
        "s_per_step": _step_seconds(found),
        "seconds": round(whole, 2),
        "split_s": _split(found, whole),
    }


def _split(found: list[dict[str, Any]], whole: float) -> dict[str, float]:
    """Return where the time of an attempt went, of its workers on average.

    start, compile, text, denoise, decode and waiting are the whole; painting is the last four of
    them. encode goes on beside these, and upload, which the uploader adds (rows.py). What was
    waited for is the slowest worker, or the thread that writes pictures.
    """
    count = len(found)
    before = {name: sum(row[f"{name}_s"] for row in found) / count for name in ("start", "compile")}
    names = sorted({"text", "denoise", "decode", "encode"}.union(*(row["split"] for row in found)))
    mean = {name: sum(row["split"].get(name, 0.0) for row in found) / count for name in names}
    painting = whole - sum(before.values())
    waiting = painting - sum(mean.values()) + mean["encode"]
    split = before | mean | {"waiting": waiting, "painting": painting}
    return {name: round(value, 2) for name, value in split.items()}


def _step_seconds(found: list[dict[str, Any]]) -> dict[str, float]:
    """Return seconds per denoising step of a batch, by scheduler, as the reference's column."""
    total: dict[str, tuple[float, int]] = {}
    for row in found:
        for name, (seconds, steps) in row["steps"].items():
            before = total.get(name, (0.0, 0))
            total[name] = (before[0] + seconds, before[1] + steps)
    return {name: round(seconds / steps, 4) for name, (seconds, steps) in sorted(total.items())}


def _last_row(metrics: Path) -> dict[str, object]:
    try:
        row = json.loads(metrics.read_bytes().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}
    return row if isinstance(row, dict) else {}


def raise_reasons(attempt: Attempt) -> None:
    """Raise the reason that a worker gave for its end, if one did; the lowest rank speaks.

    Raises:
        JobError: with the worker's own exit code and words.
    """
    reasons = [pair for pair in attempt.outbox.reasons() if pair[0] != Stopped.code]
    if reasons:
        code, reason = reasons[0]
        if code == Unavailable.code:
            reason += _outage(attempt)
        raise BY_EXIT[code](reason) if code in BY_EXIT else JobError(reason)


def _outage(attempt: Attempt) -> str:
    """Return what is known of a store that is away: a disk is full because nothing leaves it."""
    try:
        since, _, why = attempt.outbox.away.read_text(encoding="utf-8").partition(" ")
        return f" (the store has been away for {time.time() - float(since):.0f} s: {why})"
    except (OSError, ValueError):
        return ""


def judge(attempt: Attempt, ended: int) -> None:
    """Turn the workers' end into this attempt's: return for success, raise otherwise.

    Raises:
        JobError: with the exit code and the reason that Kubernetes and people see.
    """
    raise_reasons(attempt)
    try:
        stopped = attempt.stop.since is not None and not finished(attempt)
        now = attempt.progress() if stopped else 0
    except OSError as error:
        told = f"stopped on request while the store was away: {attempt.env.store}: {error}"
        raise Unavailable(told) from error
    if stopped:
        unit = "step" if attempt.spec.kind == "train" else "picture"
        if now > attempt.restored:
            raise Stopped(f"stopped on request: {unit} {now} is committed")
        raise Unavailable(f"stopped on request before anything new was committed ({unit} {now})")
    memory = cgroups.read()
    if ended != 0 and memory.kills > attempt.memory.kills:
        # Whichever process it was: msrun and its scheduler tell of their end in other words.
        raise Killed(f"out of memory ({memory}): give more or lower the batch")
    if ended == -signal.SIGKILL:
        told = f" ({memory})" if str(memory) else ""
        raise Killed(
            f"a worker was killed (SIGKILL), as a rule for memory{told}: give more or lower the"
            " batch"
        )
    if ended < 0:
        name = signal.Signals(-ended).name
        raise JobError(f"a worker was ended by {name}: {last_words(attempt.logs)}")
    if ended in BY_EXIT and ended != Stopped.code:
        told = attempt.outbox.no_space() or last_words(attempt.logs)
        raise BY_EXIT[ended](f"a worker left no reason; {told}")
    if ended > 0:
        raise JobError(f"a worker ended with {ended}: {last_words(attempt.logs)}")
    if not finished(attempt):
        raise JobError("the workers ended without a result")


def tell_end(attempt: Attempt, code: int, reason: str) -> None:
    """Leave in the store how this attempt ended, for who has no cluster to ask; best effort.

    Args:
        attempt: which; one that was overtaken leaves nothing. Of several nodes that paint, one that
            has done its part of a run that is not done leaves nothing either, nor one that was
            stopped because another has failed for good.
        code: its exit code.
        reason: one line.
    """
    key, run = layout.key(attempt.env.run, layout.END), attempt.env.run
    row = {
        # The claim of a run whose nodes claim their own parts stays the first one.
        "attempt": attempt.claim.epoch if attempt.claim.node is None else 1,
        "namespace": attempt.claim.namespace,
        "node": attempt.claim.node,
        "code": code,
        "name": BY_CODE[code].name,
        "reason": reason,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }

    def write() -> None:
        try:
            check_claim(attempt.store, run, attempt.claim)
            if attempt.claim.node is not None and not _is_the_runs(attempt, code):
                return
            attempt.store.write(key, json.dumps(row, indent=1).encode())
        except (OSError, JobError) as error:
            log.warning("end=untold error=%r", str(error))

    writing = threading.Thread(target=write, name="end", daemon=True)
    writing.start()
    writing.join(END_SECONDS)


def _is_the_runs(attempt: Attempt, code: int) -> bool:
    """Say whether a node's end is news of the run."""
    if code == 0:
        return has_result(attempt)
    there = document(attempt, layout.key(attempt.env.run, layout.END)) or {}
    return BY_CODE[code].retry == "final" or there.get("code") not in FINAL


def forget_end(attempt: Attempt) -> None:
    """Remove what a node told of its end when it begins again, if it was not another's last word.

    Raises:
        OSError: the store failed.
    """
    key = layout.key(attempt.env.run, layout.END)
    there = document(attempt, key)
    if there and (there.get("node") == attempt.claim.node or there.get("code") not in FINAL):
        attempt.store.delete(key)


def last_words(logs: Path) -> str:
    """Return the last line of the newest traceback in the workers' logs, or where to look."""
    for path in sorted(logs.glob("worker_*.log")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if "Traceback (most recent call last)" in text:
            tail = text.rpartition("Traceback (most recent call last)")[2].splitlines()
            lines = [
                line for line in tail if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)
            ]
            if lines:
                return f"{lines[-1][:300]} ({path.name})"
    return "see the workers' logs"
