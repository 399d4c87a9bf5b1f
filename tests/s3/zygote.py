"""Children that have Python, boto3 and our programs loaded already: forked, not started anew.

A test run starts a hundred uploaders, and each would take a second of the processor to begin with.
Must not know what a program is for. Run as a script it is the process that forks, of one thread.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PRELOAD = "import boto3, jobs.sync, jobs.s3, jobs.multipart; boto3.client('s3', 'us-east-1')"


@dataclass(frozen=True)
class Child:
    """A forked process; its output goes to a file."""

    pid: int
    output: Path
    ended: Future[int]

    def wait(self, seconds: float = 120) -> int:
        """Return its exit code, -9 if it was killed; end it if it takes longer than that."""
        try:
            return self.ended.result(seconds)
        except TimeoutError:
            self.kill()
            raise

    def running(self) -> bool:
        """Say whether it has not ended."""
        return not self.ended.done()

    def kill(self) -> None:
        """End it with SIGKILL, if it lives, and wait for its end."""
        if self.running():
            os.kill(self.pid, signal.SIGKILL)
            self.ended.result(10)

    def told(self) -> str:
        """Return what it has written."""
        return self.output.read_text(errors="replace")


class Zygote:
    """The process that forks them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._begun: Future[int] = Future()
        self._ended: dict[int, Future[int]] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def fork(self, program: str, output: Path, *words: str, **variables: str) -> Child:
        """Run Python code in a child whose sys.argv[1:] are `words`, with these variables too."""
        request = {
            "program": program,
            "output": str(output),
            "argv": ["child", *words],
            "variables": {**_own(os.environ), **variables},
        }
        assert self._process.stdin
        with self._lock:
            self._begun = Future()
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            pid = self._begun.result(10)
            return Child(pid, output, self._ended[pid])

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            said = json.loads(line)
            if "code" in said:
                self._ended[said["pid"]].set_result(said["code"])
            else:
                self._ended[said["pid"]] = Future()
                self._begun.set_result(said["pid"])


def _own(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name != "PYTEST_CURRENT_TEST"}


@contextmanager
def zygote() -> Iterator[Zygote]:
    """Run it until the block ends."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Zygote(process)
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait(10)


def _serve() -> None:
    exec(PRELOAD)
    buffer, living = b"", set[int]()
    while True:
        ready, _, _ = select.select([0], [], [], 0.02)
        if ready:
            read = os.read(0, 1 << 16)
            if not read:
                break
            *lines, buffer = (buffer + read).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    _become(json.loads(line))
                living.add(pid)
                print(json.dumps({"pid": pid}), flush=True)
        while living and (found := os.waitpid(-1, os.WNOHANG))[0]:
            living.discard(found[0])
            code = os.waitstatus_to_exitcode(found[1])
            print(json.dumps({"pid": found[0], "code": code}), flush=True)
    for pid in living:
        os.kill(pid, signal.SIGKILL)


def _become(request: dict[str, object]) -> None:
    """Run the program in this process and end it, whatever happens."""
    code = 1
    try:
        handle = os.open(str(request["output"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(0)
        os.environ.clear()
        os.environ.update(request["variables"])  # type: ignore[call-overload]
        sys.argv = list(request["argv"])  # type: ignore[call-overload]
        exec(str(request["program"]), {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
