"""Group norms of painting on CPU: mindone's numbers, in other operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

from mindspore import nn  # noqa: E402


@pytest.fixture
def net(on_cpu: None) -> Any:
    from mindone.diffusers.models.normalization import GroupNorm

    ms.set_context(mode=ms.GRAPH_MODE)
    norm = GroupNorm(8, 32, eps=1e-3)
    rng = np.random.default_rng(0)
    norm.weight.set_data(ms.Tensor(rng.uniform(0.5, 2, 32).astype(np.float32)))
    norm.bias.set_data(ms.Tensor(rng.uniform(-1, 1, 32).astype(np.float32)))
    return nn.SequentialCell(norm)


@pytest.mark.parametrize(("kind", "close"), [(np.float32, 2e-5), (np.float16, 4e-3)])
def test_the_numbers_are_mindones(net: Any, kind: type, close: float) -> None:
    from jobs import norms

    x = np.random.default_rng(1).standard_normal((3, 32, 5, 7)).astype(kind)
    # Each group has a mean and a spread of its own, and one is so flat that epsilon counts.
    x = (
        x * np.linspace(0.01, 4, 32, dtype=kind)[:, None, None]
        + np.arange(32, dtype=kind)[:, None, None]
    )
    expected = net(ms.Tensor(x)).asnumpy()
    names = [name for name, _ in net.parameters_and_names()]
    assert norms.unroll(net) is net
    assert type(net[0]) is norms.Unrolled
    assert [name for name, _ in net.parameters_and_names()] == names
    fresh = nn.SequentialCell(net[0])  # a cell that has been compiled keeps its graph
    found = fresh(ms.Tensor(x)).asnumpy()
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert not np.array_equal(found, expected), "another graph"
    assert np.abs(found.astype(np.float32) - expected.astype(np.float32)).max() < close


def test_a_device_with_a_kernel_of_its_own_keeps_it(
    net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs import norms

    monkeypatch.setattr(ms, "get_context", lambda _key: "Ascend")
    assert type(norms.unroll(net)[0]) is not norms.Unrolled
