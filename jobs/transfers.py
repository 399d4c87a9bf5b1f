"""Owns moving many files at once between a folder and a store; must not know what they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from jobs.stores import Progress, Store, Stored, unwatched

R = TypeVar("R")

FILES_AT_ONCE = 4
"""More gains nothing: a request of boto3 costs 2 ms of one Python interpreter (BENCHMARKS.md)."""


def put_all(
    store: Store,
    items: Sequence[tuple[str, Path]],
    progress: Progress = unwatched,
    sent: dict[str, Stored] | None = None,
) -> list[Stored]:
    """Store files under their keys, several at once; return what was stored, in the same order.

    `sent` takes each proof as soon as there is one, also of a call that fails later.

    Raises:
        Refused, OSError: of the first file that failed; no further one is begun then.
    """

    def put(key: str, path: Path) -> Stored:
        proof = store.put(key, path, progress)
        if sent is not None:
            sent[key] = proof
        return proof

    return _all(items, put)


def get_all(
    store: Store, items: Sequence[tuple[str, Path]], progress: Progress = unwatched
) -> list[str]:
    """Copy objects to files, several at once; return their SHA-256s, in the same order.

    Raises:
        FileNotFoundError, Refused, OSError: of the first that failed; no further one is begun.
    """
    return _all(items, lambda key, path: store.get(key, path, progress))


def _all(items: Sequence[tuple[str, Path]], move: Callable[[str, Path], R]) -> list[R]:
    failed = threading.Event()

    def one(item: tuple[str, Path]) -> R | None:
        if failed.is_set():
            return None
        try:
            return move(*item)
        except BaseException:
            failed.set()
            raise

    if len(items) == 1:
        return [move(*items[0])]
    with ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="file") as pool:
        futures = [pool.submit(one, item) for item in items]
        try:
            errors = [error for future in futures if (error := future.exception())]
        except BaseException:  # Ctrl-C: what has not begun does not begin
            failed.set()
            raise
        if errors:
            raise errors[0]
        return [result for future in futures if (result := future.result()) is not None]
