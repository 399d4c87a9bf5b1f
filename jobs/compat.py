"""The one shim between MindSpore 2.5 (the image) and 2.7 (CPU). Must not know models."""

from __future__ import annotations

import contextlib
import io
import os

from jobs.environment import Environment, Worker
from jobs.msrun import die_with_supervisor


def pin(local: int, threads: int) -> None:
    """Pin this process to `threads` cores of its own, before the framework counts them.

    A picture's bits depend on the number of cores that MindSpore sees (measured), so the number
    is part of the plan.
    """
    cores = sorted(os.sched_getaffinity(0))
    if 0 < threads < len(cores):
        start = local * threads % len(cores)
        os.sched_setaffinity(0, (cores * 2)[start : start + threads])


GROUP = (
    "MS_ROLE", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_WORKER_NUM", "MS_NODE_ID", "MS_NODE_RANK",
    "RANK_ID", "RANK_SIZE", "RANK_TABLE_FILE",
)  # fmt: skip
"""Variables by which MindSpore takes a process for one of a group."""


def start(env: Environment, *, group: bool) -> Worker:
    """Bring up MindSpore in graph mode on this worker's device, and the group of all workers.

    In the process that msrun starts as its scheduler the call never returns: `init` serves the
    group until it ends, and the process exits. Without a group there is nothing to serve.

    Args:
        env: where this job runs.
        group: whether the workers speak to each other; to meet takes them some 5 s (measured).
    """
    die_with_supervisor()
    worker = Worker.read()
    scheduler = os.environ.get("MS_ROLE") == "MS_SCHED"
    if scheduler and not group:
        raise SystemExit(0)
    local = worker.rank % env.workers
    if env.device == "CPU" and not scheduler:
        pin(local, env.threads)
    if not group:
        for name in GROUP:
            os.environ.pop(name, None)
    from mindspore.communication import init

    # In a group `init` decides which device is whose.
    own = {"device_id": local} if env.device == "Ascend" and not group else {}
    take(env.device, **own)
    if not scheduler:
        # Before `init`: by then the scheduler listens, and nobody sleeps between two tries.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            # mindone announces itself on stdout while it is imported.
            import mindone.diffusers
            import mindone.transformers  # noqa: F401
    if "MS_ROLE" in os.environ:
        init()
    if scheduler:
        raise SystemExit(0)
    return worker


def take(device: str, **own: int) -> None:
    """Let MindSpore compute on a kind of device, in graph mode; `own` may say which one."""
    import mindspore as ms

    if hasattr(ms, "set_device"):
        ms.set_device(device, **own)
    else:
        ms.set_context(device_target=device, **own)
    ms.set_context(mode=ms.GRAPH_MODE)


@contextlib.contextmanager
def eager():  # type: ignore[no-untyped-def]
    """Run the block operation by operation: for cells that are called too seldom to compile."""
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
    if hasattr(ms, "runtime") and hasattr(ms.runtime, "launch_blocking"):
        # Without it asynchronous dispatch is several times slower on CPU (measured).
        ms.runtime.launch_blocking()
    else:
        ms.set_context(pynative_synchronize=True)
    try:
        yield
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
