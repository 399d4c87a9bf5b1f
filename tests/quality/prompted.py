"""Paint prompts whose pictures can be read back, and count what is right, with intervals.

The model is the folder that QUALITY_MODEL names, or `tiny`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from looking import Seen, look

from jobs import draws, pictures
from jobs.batches import Request
from jobs.tiny import captions, scenes

SIDE, BATCH, STEPS, GUIDANCE = 128, 10, 30, 4.0
SEED = 7
LOOKS = ("colour", "what", "place", "background", "count")


@dataclass(frozen=True)
class Share:
    """How many of how many; the interval is Wilson's at 95 % (Wilson 1927, JASA 22, p. 209)."""

    right: int
    count: int

    @property
    def value(self) -> float:
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        z, n, p = 1.96, self.count, self.value
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return middle - half, middle + half

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f} to {100 * high:.1f}, n = {self.count})"


def unseen(kind: str, count: int) -> list[scenes.Scene]:
    """Return different combinations that were set apart, each with a background."""
    pairs = [(row, name) for row in sorted(scenes.apart(kind)) for name in scenes.BACKGROUNDS]
    rng = draws.generator(SEED, 200)
    order = rng.permutation(len(pairs))[:count]
    assert len(order) == count
    return [scenes.compose(*pairs[index], rng) for index in order]


def folder() -> Path:
    """Return the pipeline folder that is measured."""
    named = os.environ.get("QUALITY_MODEL")
    if named:
        return Path(named)
    from jobs import model
    from jobs.environment import Environment

    return model.locate("tiny", "main", Environment.read())


def painter(path: Path, kind: Callable[..., Any] | None = None) -> Any:
    """Return a compiled painter of the pipeline folder, or of another class than Painter."""
    import mindspore as ms

    from jobs import sampling

    ms.set_context(mode=ms.GRAPH_MODE)
    found = (kind or sampling.Painter)(path, ms.float32, width=SIDE, height=SIDE, batch=BATCH)
    found.compile()
    return found


def paint(
    painter: Any, prompts: Sequence[str], *, scheduler: str | None = None,
    steps: int = STEPS, guidance: float = GUIDANCE,
) -> list[np.ndarray]:  # fmt: skip
    """Return a picture [H, W, 3] for each prompt."""
    found = []
    for first in range(0, len(prompts), BATCH):
        part = prompts[first : first + BATCH]
        requests = [
            Request(first + place + 1, 0, prompt, None, SEED) for place, prompt in enumerate(part)
        ]
        decoded = painter.paint(requests, steps=steps, guidance=guidance, scheduler=scheduler)
        found += [pictures.to_pixels(one) for one in decoded]
    return found


def judge(drawn: Sequence[np.ndarray], wanted: Sequence[scenes.Scene]) -> dict[str, Share]:
    """Return how often the pictures show what was asked for, by LOOKS."""
    seen = [look(picture) for picture in drawn]
    return {
        name: Share(
            sum(_told(scene, name) == getattr(one, name) for one, scene in _pairs(seen, wanted)),
            len(wanted),
        )
        for name in LOOKS
        if name != "place" or all(scene.place for scene in wanted)
    }


def _pairs(seen: list[Seen], wanted: Sequence[scenes.Scene]) -> list[tuple[Seen, scenes.Scene]]:
    return list(zip(seen, wanted, strict=True))


def _told(scene: scenes.Scene, name: str) -> object:
    return len(scene.spots) if name == "count" else getattr(scene, name)


def prompts(wanted: Sequence[scenes.Scene]) -> list[str]:
    """Return each scene told in the commonest words."""
    return [captions.plain(scene) for scene in wanted]


def told(name: str, shares: dict[str, Share]) -> None:
    """Print a row for BENCHMARKS.md."""
    print(name, "; ".join(f"{key} {share}" for key, share in shares.items()), flush=True)
