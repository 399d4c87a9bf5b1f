"""What a container's cgroup tells of its memory, in both versions of the files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from jobs import cgroups
from jobs.cgroups import GIB, Memory


@pytest.mark.parametrize(
    ("files", "expected", "told"),
    [
        (
            {
                "memory.max": f"{8 * GIB}\n",
                "memory.peak": f"{3 * GIB}\n",
                "memory.events": "low 0\noom 2\noom_kill 1\noom_group_kill 0\n",
            },
            Memory(8 * GIB, 3 * GIB, 1),
            "peak 3.0 GiB of 8.0 GiB",
        ),
        ({"memory.max": f"{GIB}\n"}, Memory(GIB), "peak not known of 1.0 GiB"),
        ({"memory.max": "max\n", "memory.events": "oom_kill 3\n"}, Memory(), ""),
        (
            {
                "memory/memory.limit_in_bytes": f"{GIB}\n",
                "memory/memory.max_usage_in_bytes": f"{GIB}\n",
                "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            },
            Memory(GIB, GIB, 2),
            "peak 1.0 GiB of 1.0 GiB",
        ),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, Memory(), ""),
        ({}, Memory(), ""),
    ],
)
def test_the_memory_of_a_container(
    tmp_path: Path, files: Mapping[str, str], expected: Memory, told: str
) -> None:
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = cgroups.read(tmp_path)
    assert found == expected
    assert str(found) == told
