"""Dropout by a hash: the graph computes what whole numbers say, and it looks like chance."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

from jobs import draws  # noqa: E402
from jobs.dropout import PRIME, Dropout, new_key  # noqa: E402

BATCH, TOKENS, FEATURES, RATE = 2, 5000, 64, 0.25


@pytest.fixture(autouse=True)
def graph_mode(on_cpu: None) -> None:
    ms.set_context(mode=ms.GRAPH_MODE)


def keys(position: int) -> np.ndarray:
    return np.stack([draws.dropout_key(0, position + n, PRIME) for n in range(BATCH)])


def masks(position: int, name: str = "unet.a", shape: tuple[int, ...] = ()) -> np.ndarray:
    shape = shape or (BATCH, TOKENS, FEATURES)
    key = new_key(BATCH)
    cell = Dropout(RATE, key, name, shape[-1])
    key.set_data(ms.Tensor(keys(position)))
    found: np.ndarray = cell(ms.Tensor(np.ones(shape, np.float32))).asnumpy()
    return found


def in_whole_numbers(position: int, name: str) -> np.ndarray:
    """The same formula with Python's own modulo on 64-bit integers."""
    rng = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    a, b = rng.integers(0, PRIME, 2)
    columns = rng.integers(1, PRIME, (1, 1, FEATURES))

    def cube(x: Any) -> Any:
        return x % PRIME * (x % PRIME) % PRIME * (x % PRIME) % PRIME

    one, two = (keys(position).astype(np.int64)[:, n].reshape(-1, 1, 1) for n in (0, 1))
    place = np.arange(TOKENS).reshape(1, -1, 1)
    factor = cube(cube(place + one + a) + place // PRIME + two)
    drawn = cube((factor * columns + cube(factor + one + b)) % PRIME + two)
    return drawn >= round(RATE * PRIME)  # type: ignore[no-any-return]


def test_masks_are_those_of_whole_numbers() -> None:
    """More tokens than PRIME, so that the rounded quotients are seen, too."""
    found = masks(3)
    assert np.array_equal(found > 0, in_whole_numbers(3, "unet.a"))
    assert np.unique(found).size == 2


def test_masks_look_like_chance() -> None:
    found = masks(0)
    kept = found > 0
    assert abs(kept.mean() - (1 - RATE)) < 0.003  # 640,000 numbers: three deviations are 0.0016
    assert abs(found.mean() - 1) < 0.004
    # Each token's and each feature's own part: deviations of 64 and of 10,000 numbers.
    assert abs(kept.mean(2).std() - np.sqrt(RATE * (1 - RATE) / FEATURES)) < 0.006
    assert np.abs(kept.mean((0, 1)) - (1 - RATE)).max() < 0.02
    columns = np.corrcoef(kept.reshape(-1, FEATURES).T) - np.eye(FEATURES)
    assert np.abs(columns).max() < 0.06
    rows = np.corrcoef(kept[0, :300]) - np.eye(300)
    assert abs(rows.std() - 1 / np.sqrt(FEATURES)) < 0.02


def test_steps_samples_and_modules_have_masks_of_their_own() -> None:
    several = [masks(0)[0], masks(0)[1], masks(1)[1], masks(0, "unet.b")[0]]
    flat = np.stack([one.reshape(-1) for one in several])
    assert np.abs(np.corrcoef(flat) - np.eye(4)).max() < 0.02
    assert np.array_equal(masks(0)[1], masks(1)[0]), "the mask goes by the sample, not its place"


def test_a_module_without_tokens_drops_too() -> None:
    assert masks(0, shape=(BATCH, 4096)).shape == (BATCH, 4096)
    assert abs((masks(0, shape=(BATCH, 4096)) > 0).mean() - (1 - RATE)) < 0.03
