"""Owns the plan of an inference job: rows and spec -> pictures, batches of one shape, shares. Pure.

A picture's bits depend on its place in a batch and on the batch's size, not on its neighbours
(measured), so both follow from the whole prompt file: whatever is missing in a batch, because it
is there already or was not asked for, leaves a hole at its place. Must not read or paint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace

from jobs.prompts import selection
from jobs.specs import InferSpec, PromptRow


@dataclass(frozen=True, slots=True)
class Request:
    """One picture that is asked for; the noise depends on seed, line and image alone."""

    line: int
    image: int
    prompt: str
    negative: str | None
    seed: int
    guidance: float = 7.5
    rescale: float = 0.0
    """Share that is rescaled (`guidance_rescale` of a spec)."""


Slots = tuple[Request | None, ...]
Size = tuple[int, int]
"""Width and height in pixels."""
_Key = tuple[int, int, int, str | None]


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures of one call: one shape and one way of sampling; a hole at each missing one."""

    width: int
    height: int
    steps: int
    scheduler: str | None
    slots: Slots

    @property
    def pictures(self) -> list[Request]:
        """What is painted, without the holes."""
        return [request for request in self.slots if request is not None]

    @property
    def cost(self) -> int:
        """What the time grows with: pixels times steps, holes included."""
        return self.width * self.height * self.steps * len(self.slots)

    def without(self, done: Set[tuple[int, int]]) -> Batch:
        """Return the batch with holes where (line, image) is in the set."""
        return replace(
            self,
            slots=tuple(
                None if request is None or (request.line, request.image) in done else request
                for request in self.slots
            ),
        )

    def only(self, slots: Set[int]) -> Batch:
        """Return the batch with holes everywhere but at these places."""
        kept = (r if at in slots else None for at, r in enumerate(self.slots))
        return replace(self, slots=tuple(kept))


def plan(rows: Sequence[PromptRow], spec: InferSpec) -> list[Batch]:
    """Return the batches of the whole file that hold a picture asked for, by their first picture.

    The same for every worker and every attempt. Pictures of one shape, number of steps and
    scheduler share batches; guidance, negative prompts and seeds may differ inside one.
    """
    wanted = selection(spec.only)
    buckets: dict[_Key, list[tuple[int, Request | None]]] = {}
    found: list[tuple[int, Batch]] = []
    for number, (row, request) in enumerate(_requests(rows, spec)):
        key: _Key = (
            row.width or spec.width,
            row.height or spec.height,
            row.steps or spec.steps,
            row.scheduler or spec.scheduler,
        )
        bucket = buckets.setdefault(key, [(number, None)] * spec.first_slot)
        bucket.append((number, request if wanted.wants(request.line, request.image) else None))
        if len(bucket) == spec.batch_size:
            found += _closed(key, bucket, spec.batch_size)
            bucket.clear()
    for left, bucket in buckets.items():
        found += _closed(left, bucket, spec.batch_size)
    return [batch for _, batch in sorted(found, key=lambda pair: pair[0])]


def _closed(
    key: _Key, bucket: list[tuple[int, Request | None]], size: int
) -> list[tuple[int, Batch]]:
    slots = tuple(request for _, request in bucket)
    if not any(slots):
        return []
    return [(bucket[0][0], Batch(*key, slots + (None,) * (size - len(slots))))]


def _requests(rows: Sequence[PromptRow], spec: InferSpec) -> Iterator[tuple[PromptRow, Request]]:
    for row in rows:
        guidance = spec.guidance if row.guidance is None else row.guidance
        rescale = spec.guidance_rescale if row.guidance_rescale is None else row.guidance_rescale
        negative = spec.negative if row.negative is None else row.negative
        seed = spec.seed if row.seed is None else row.seed
        for image in range(row.images or spec.images):
            yield (
                row,
                Request(row.line, image, row.prompt, negative, seed, guidance, rescale),
            )


def share(batches: Sequence[Batch], rank: int, world: int) -> list[Batch]:
    """Return a worker's batches, in the plan's order, so that all workers end at the same time.

    The dearest batches are given out first, each to who has the least; among equal ones that is
    one after another. By the whole plan, not by what is left of it: workers may see different
    leftovers while the first one of them paints already.
    """
    load = [0] * world
    mine = []
    for at in sorted(range(len(batches)), key=lambda i: (-batches[i].cost, i)):
        worker = min(range(world), key=lambda w: (load[w], w))
        load[worker] += batches[at].cost
        if worker == rank:
            mine.append(at)
    return [batches[at] for at in sorted(mine)]


def sizes(batches: Sequence[Batch]) -> list[Size]:
    """Return the shapes, largest first: a fixed order of compilation, and memory fails early."""
    found = {(batch.width, batch.height) for batch in batches}
    return sorted(found, key=lambda size: (-size[0] * size[1], size))
