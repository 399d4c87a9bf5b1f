"""Owns whose run it is: the claim in the store that an attempt takes, and checks before commits.

So two submissions cannot write one run, and an old pod cannot overwrite what a new one wrote. Must
not know what is written.
"""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass

from jobs import layout
from jobs.errors import BadSpec, Unavailable
from jobs.stores import Conflict, Store


@dataclass(frozen=True, slots=True)
class Claim:
    """Whose run it is: one submission (`uid`) and its attempt (`epoch`, from 1)."""

    cluster: str
    namespace: str
    uid: str
    epoch: int
    token: str = ""
    """Drawn at random, so that two attempts that start at the same moment differ."""
    node: int | None = None
    """Of a painting over several nodes: each claims its own part, which nobody else writes to."""
    lost: tuple[str, ...] = ()
    """The submissions it was taken from: two that live would take it from each other for ever."""

    def to_json(self) -> bytes:
        """Return deterministic JSON."""
        return json.dumps(asdict(self)).encode()


def take_claim(
    store: Store,
    run: str,
    *,
    cluster: str,
    namespace: str,
    uid: str,
    take_over: bool = False,
    node: int | None = None,
) -> Claim:
    """Make the run this submission's, as its next attempt, and return the claim.

    A node that has a part of its own claims that, after the run itself, which belongs to the
    submission from its first node on.

    Args:
        store: the run's.
        run: its name.
        cluster: of this attempt.
        namespace: of this attempt.
        uid: of the submission.
        take_over: whether another submission's run may be gone on with, where it is one node's;
            whatever still writes to it can't commit any more, and has lost the run for good.
        node: claims its part of the run.

    Raises:
        BadSpec: another submission writes to the prefix, or was quicker.
    """
    if node is not None:
        _own(store, run, Claim(cluster, namespace, uid, 1))
    key = layout.node_key(run, node, layout.CLAIM)
    old, before = _claim_of(store, run, key)
    lost = () if before is None else tuple(before.lost)
    if before is not None and before.uid != uid:
        if not take_over or uid in lost:
            raise _belongs(run, before)
        lost = (*lost, before.uid)
    epoch = 1 if before is None else before.epoch + 1
    claim = Claim(cluster, namespace, uid, epoch, secrets.token_hex(8), node, lost)
    try:
        store.swap(key, old, claim.to_json())
    except Conflict as error:
        raise Unavailable(f"run {run!r}: another attempt started at the same moment") from error
    return claim


def _own(store: Store, run: str, claim: Claim) -> None:
    """Make the run a submission's, whichever of its nodes is first."""
    key = layout.key(run, layout.CLAIM)
    old, before = _claim_of(store, run, key)
    if old is None:
        with suppress(Conflict):
            store.swap(key, None, claim.to_json())
        old, before = _claim_of(store, run, key)
    if before is None or before.uid != claim.uid:
        raise _belongs(run, before or claim)


def _claim_of(store: Store, run: str, key: str) -> tuple[bytes | None, Claim | None]:
    """Return a claim as it is written, and what it says.

    Raises:
        BadSpec: it is damaged.
    """
    try:
        found = store.read(key)
    except FileNotFoundError:
        return None, None
    try:
        return found, Claim(**json.loads(found))
    except (ValueError, TypeError) as error:
        raise BadSpec(f"run {run!r}: its {layout.CLAIM} is damaged; choose another name") from error


def _belongs(run: str, claim: Claim) -> BadSpec:
    return BadSpec(
        f"run {run!r}: its records belong to another submission ({claim.uid} in "
        f"{claim.cluster or 'a cluster'}); it goes on only for its very spec, submitted anew, on "
        "one node if it paints; or --fork a training, or choose another name"
    )


def check_claim(store: Store, run: str, claim: Claim) -> None:
    """Make sure that the run is still this attempt's.

    Raises:
        Unavailable: a newer attempt has taken it over; not final, for that one may be fine.
    """
    for _ in range(2):  # a byte that was flipped on its way is no other attempt
        try:
            if store.read(layout.node_key(run, claim.node, layout.CLAIM)) == claim.to_json():
                return
        except FileNotFoundError:
            break
    raise Unavailable(
        f"run {run!r}: taken over by another attempt; this one must not write any more"
    )
