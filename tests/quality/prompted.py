"""Paint prompts whose pictures can be read back, and count what is right, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from looking import look
from numpy.typing import NDArray

from jobs import draws, pictures
from jobs.batches import Request
from jobs.tiny import MODEL, brush, captions, folders, scenes
from launcher import methods

OVERLAY = yaml.safe_load((Path(methods.__file__).parent / "tiny.yaml").read_text())["infer"]
SIDE, BATCH = 128, 10
STEPS, GUIDANCE = int(OVERLAY["steps"]), float(OVERLAY["guidance"])
"""What a user gets who says nothing."""
SEED = 7
LOOKS = ("colour", "what", "place", "background", "count")
TOLD = ("colour", "what", "place")
"""What adherence is the mean of."""
Seen = dict[str, NDArray[np.bool_]]
"""Of each of LOOKS, picture by picture, whether it is as it was asked for."""


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
    """Return different combinations that were set apart, each with a background.

    86 of colour, shape and place on six backgrounds: pictures of one combination are alike, so that
    the intervals over 500 are somewhat too narrow.
    """
    pairs = [(row, name) for row in sorted(scenes.apart(kind)) for name in scenes.BACKGROUNDS]
    rng = draws.generator(SEED, 200)
    order = rng.permutation(len(pairs))[:count]
    assert len(order) == count
    return [scenes.compose(*pairs[index], rng) for index in order]


def painter(path: Path = MODEL, kind: Callable[..., Any] | None = None) -> Any:
    """Return a compiled painter of a pipeline folder, or of another class than Painter."""
    import mindspore as ms

    from jobs import sampling

    ms.set_context(mode=ms.GRAPH_MODE)
    found = (kind or sampling.Painter)(path, ms.float32, width=SIDE, height=SIDE, batch=BATCH)
    found.compile(texts=True)
    return found


def paint(
    painter: Any, prompts: Sequence[str], *, scheduler: str | None = None,
    steps: int = STEPS, guidance: float = GUIDANCE,
) -> list[np.ndarray]:  # fmt: skip
    """Return a picture [H, W, 3] for each prompt; the same noise for the same place in the list."""
    found = []
    for first in range(0, len(prompts), BATCH):
        part = prompts[first : first + BATCH]
        requests = [
            Request(first + place + 1, 0, prompt, None, SEED) for place, prompt in enumerate(part)
        ]
        decoded = painter.paint(requests, steps=steps, guidance=guidance, scheduler=scheduler)
        found += [pictures.to_pixels(one) for one in decoded]
    return found


def judge(drawn: Sequence[np.ndarray], wanted: Sequence[scenes.Scene]) -> Seen:
    """Return whether the pictures show what was asked for, by LOOKS."""
    seen = [look(picture) for picture in drawn]
    return {
        name: np.array(
            [_asked(scene, name) == getattr(s, name) for s, scene in zip(seen, wanted, strict=True)]
        )
        for name in LOOKS
    }


def _asked(scene: scenes.Scene, name: str) -> object:
    return len(scene.spots) if name == "count" else getattr(scene, name)


def share(right: NDArray[np.bool_]) -> Share:
    """Return how many are right."""
    return Share(int(right.sum()), len(right))


def adherence(seen: Seen) -> NDArray[np.float64]:
    """Return how much of what was told each picture shows, from 0 to 1."""
    return np.mean([seen[name] for name in TOLD], axis=0, dtype=np.float64)


def loss(before: Seen, after: Seen) -> tuple[float, float]:
    """Return how much less is shown than before, and half its interval at 95 %, in pairs."""
    gap = adherence(before) - adherence(after)
    return float(gap.mean()), float(1.96 * gap.std(ddof=1) / math.sqrt(len(gap)))


def styled(drawn: Sequence[np.ndarray], style: brush.Style) -> Share:
    """Return how many of the pictures are in a style."""
    return Share(sum(look(picture).style == style for picture in drawn), len(drawn))


def prompts(wanted: Sequence[scenes.Scene]) -> list[str]:
    """Return each scene told in the commonest words."""
    return [captions.plain(scene) for scene in wanted]


def triggering(wanted: Sequence[scenes.Scene], style: brush.Style, trigger: str = "") -> list[str]:
    """Return each scene told as in a style's set, with its trigger."""
    return [folders.caption(scene, style, trigger) for scene in wanted]


def report(name: str, seen: Seen, *more: object) -> None:
    """Print a row for BENCHMARKS.md."""
    rows = (f"{key} {share(right)}" for key, right in seen.items())
    print(name, "; ".join((*rows, *map(str, more))), flush=True)
