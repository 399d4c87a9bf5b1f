"""Our reading of safetensors against the library's own writing, and files that are damaged."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="safetensors is not installed (extra: jobs)")

from safetensors.numpy import save, save_file

from jobs import tensors
from jobs.errors import BadSpec


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "b": rng.standard_normal((3, 2)).astype(np.float32),
        "a": rng.standard_normal((4,)).astype(np.float16),
        "c": np.array(7.5, np.float32),
        "index": np.arange(3),
        "e": np.zeros((0, 4), np.float32),
    }
    save_file(arrays, tmp_path / "x.safetensors", {"format": "pt"})
    head = tensors.header(tmp_path / "x.safetensors", "x")
    assert dict(head.shapes) == {"a": (4,), "b": (3, 2), "c": (), "e": (0, 4)}
    assert head.metadata == {"format": "pt"}
    found = tensors.arrays(tmp_path / "x.safetensors", "x")
    assert list(found) == ["a", "b", "c", "e"], "whole numbers are no weights"
    for name, array in found.items():
        assert np.array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype


def test_bf16_is_the_upper_half_of_fp32(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 3.0e38, 2.0**-100], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    header = json.dumps({"x": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + bits)
    found = tensors.arrays(tmp_path / "x", "x")["x"]
    assert found.dtype == np.float32
    assert np.allclose(found, values, rtol=2**-8)
    assert found[1] == -2.5


GOOD = save({"x": np.ones((2, 2), np.float32)})


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\3\4" * 10, GOOD[:-1], GOOD + b"x", GOOD[:20], struct.pack("<Q", 2**60) + b"{}",
     GOOD.replace(b"[2,2]", b"[2,9]"), GOOD.replace(b'"x"', b'x""')],
)  # fmt: skip
def test_what_is_no_whole_file_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(BadSpec, match=r"lora y: is no whole safetensors file \(.+\)$"):
        tensors.header(tmp_path / "x", "lora y")


def test_a_file_that_is_missing_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        tensors.header(tmp_path / "x", "x")
