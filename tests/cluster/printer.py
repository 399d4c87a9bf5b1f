"""The program of the pods of test_logs_node.py: numbered lines, really recorded and uploaded.

printer.py COUNT PER_SECOND: prints up to line COUNT, going on where the pod before was stopped.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from jobs import claims, console, layout
from jobs.environment import Environment, log_to_stdout
from jobs.outbox import Outbox
from jobs.stores import open_store

COUNT, PER_SECOND = int(sys.argv[1]), int(sys.argv[2])
log = logging.getLogger("jobs.runtime")


def main() -> int:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    log_to_stdout()
    env = Environment.read()
    log.info("jobs=test run=%s kind=train spec=none", env.run)
    store = open_store(env.store)
    claim = claims.take_claim(store, env.run, cluster="", namespace="", uid=env.uid)
    uploader = subprocess.Popen([sys.executable, "-m", "jobs.sync", json.dumps(asdict(claim))])
    mark = layout.key(env.run, "reached")
    try:
        at = int(store.read(mark))
    except FileNotFoundError:
        at = 0
    started, first = time.monotonic(), at
    while at < COUNT and not stopped:
        upto = min(COUNT, first + int((time.monotonic() - started) * PER_SECOND))
        rows = [f"[0] line {number} {'.' * 60}\n" for number in range(at, upto)]
        sys.stdout.write("".join(rows))
        sys.stdout.flush()
        at = upto
        time.sleep(0.05)
    store.write(mark, str(at).encode())
    Outbox(env.work).done.touch()
    uploader.wait()
    code = 0 if at == COUNT else 75
    (log.info if code == 0 else log.error)("exit=%d at line %d", code, at)
    Path(os.environ["TERMINATION_LOG"]).write_text(f"{code} at line {at}\n")
    return code


sys.exit(console.recorded(main))
