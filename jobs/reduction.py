"""Owns the sum of gradients over all workers, as graph cells. Must not know what is done with it.

A call of the all-reduce costs 1 to 2 ms on CPU however little it moves, so neighbouring gradients
travel together in buckets (Li et al. 2020, arXiv 2006.15704, section 3.2.2), as large as the copy
may be that this needs; and what else is summed up travels with the last of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import mindspore as ms
from mindspore import Tensor, nn, ops

BUCKET = 2**22
"""Elements that travel together, 16 MiB; a larger gradient travels alone."""


def buckets(sizes: Sequence[int], limit: int = BUCKET) -> tuple[tuple[int, int], ...]:
    """Return (first, behind the last) of neighbours that travel together, in order."""
    found: list[tuple[int, int]] = []
    start, total = 0, 0
    for place, size in enumerate(sizes):
        if place > start and total + size > limit:
            found.append((start, place))
            start, total = place, 0
        total += size
    return (*found, (start, len(sizes)))


class Reduction(nn.Cell):  # type: ignore[misc]
    """The sum over all workers."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], numbers: int) -> None:
        """Plan the buckets.

        Args:
            shapes: of the gradients.
            numbers: how many others are summed up.
        """
        super().__init__()
        sizes = [math.prod(shape) for shape in shapes]
        found = buckets(sizes)
        # What a bucket holds: (place among the gradients, first element, elements, shape).
        self.buckets = tuple(
            tuple(
                (place, (at,), (sizes[place],), tuple(shapes[place]))
                for place, at in zip(
                    range(*span), accumulate(sizes[slice(*span)], initial=numbers), strict=False
                )
            )
            for span in found
        )
        self.numbers = ((0,), (numbers,))
        self.all_reduce = ops.AllReduce(ops.ReduceOp.SUM)
        self.cut = ops.Slice()  # written as whole[a:b] each takes a while to compile

    def construct(
        self, numbers: Tensor, gradients: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the sums of `numbers` (fp32, one axis) and of each gradient, fp32."""
        found: tuple[Tensor, ...] = ()
        total = numbers
        for bucket in self.buckets:
            flat: tuple[Tensor, ...] = (numbers,)
            for place, _, _, _ in bucket:
                flat = (*flat, gradients[place].astype(ms.float32).reshape(-1))
            whole = self.all_reduce(ops.concat(flat))
            total = self.cut(whole, self.numbers[0], self.numbers[1])
            for _, at, size, shape in bucket:
                found = (*found, self.cut(whole, at, size).reshape(shape))
        return total, found
