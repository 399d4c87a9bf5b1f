"""The buckets in which gradients travel, and what comes back out of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")
from mindspore import nn, ops  # noqa: E402

from jobs import reduction  # noqa: E402


def test_buckets_are_neighbours_up_to_a_limit_and_a_larger_one_is_alone() -> None:
    assert reduction.buckets([3, 3, 3, 9, 1, 4], 6) == ((0, 2), (2, 3), (3, 4), (4, 6))
    assert reduction.buckets([9, 9], 6) == ((0, 1), (1, 2))
    assert reduction.buckets([1], 6) == ((0, 1),)
    sizes = np.random.default_rng(0).integers(1, 50, 300).tolist()
    found = reduction.buckets(sizes, 64)
    places = [place for span in found for place in range(*span)]
    assert places == list(range(300))
    assert max(sum(sizes[slice(*span)]) for span in found) <= 64


class Twice(nn.Cell):  # type: ignore[misc]
    """What the all-reduce of two workers with the same numbers does."""

    def construct(self, x: Any) -> Any:
        return x + x


@pytest.mark.parametrize("limit", [8, 2**22])
def test_each_gradient_comes_back_in_its_place(
    on_cpu: None, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    ms.set_context(mode=ms.GRAPH_MODE)
    monkeypatch.setattr(ops, "AllReduce", lambda _kind: Twice())
    monkeypatch.setattr(reduction.buckets, "__defaults__", (limit,))
    shapes = [(2, 3), (4,), (), (5, 1, 2), (3,), (1,)]
    rng = np.random.default_rng(1)
    given = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    numbers = np.array([1.0, 2.0, 3.0], np.float32)
    cell = reduction.Reduction(shapes, 3)
    assert len(cell.buckets) == (4 if limit == 8 else 1)
    gradients = tuple(
        ms.Tensor(array.astype(np.float16) if place == 1 else array)
        for place, array in enumerate(given)
    )
    total, found = cell(ms.Tensor(numbers), gradients)
    assert np.array_equal(total.asnumpy(), 2 * numbers)
    for array, back in zip(given, found, strict=True):
        assert back.shape == array.shape
        assert back.dtype == ms.float32
        assert np.allclose(back.asnumpy(), 2 * array, rtol=1e-3)
