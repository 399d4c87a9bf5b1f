"""Fine-tuning that shows: a style comes with its trigger, and only with it; by every method.

Trained as the README does it, with `launcher submit train --backend local`, on the sets that ship.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mindspore")

import prompted
from prompted import Seen, Share

from jobs import layout, lora
from jobs.tiny import brush, folders, scenes

pytestmark = [pytest.mark.quality, pytest.mark.timeout(7200)]

COUNT = 100
NEW_WORD = "zelmik"
"""Means nothing to the encoders before lora-te."""
MORE = {
    "neon": ("--steps", "500"),
    "hatched": ("--steps", "800", "--set", "noise_offset=0"),
}
"""Up to five minutes; hatching changes no ground."""
Train = Callable[..., Path]
Base = Callable[[brush.Style], Seen]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Return `train(name, *words)`: trains on two workers, and returns the newest checkpoint."""
    place = tmp_path_factory.mktemp("styles")

    def trained(name: str, *words: str) -> Path:
        began = time.monotonic()
        command = ("submit", "train", "--backend", "local", "--npus", "2", "--name", name, "--wait")
        subprocess.run(
            [sys.executable, "-m", "launcher.cli", *command, *words], cwd=place, check=True
        )
        print(f"{name}: {time.monotonic() - began:.0f} s")
        return max((place / "runs" / name / layout.CHECKPOINTS).iterdir())

    return trained


@pytest.fixture(scope="module")
def compiled() -> Any:
    return prompted.painter()


@pytest.fixture
def painter(compiled: Any) -> Iterator[Any]:
    """Yield a painter of the model that ships; what is merged into it is taken out again."""
    yield compiled
    lora.restore(compiled.cells, compiled.pristine)
    compiled.pristine = {}
    compiled.embeddings.clear()


def wanted(style: brush.Style) -> list[scenes.Scene]:
    """Return unseen combinations whose shapes a style shows on."""
    found = [s for s in prompted.unseen("shape", 400) if s.what in folders.shapes(style)]
    return found[:COUNT]


@pytest.fixture(scope="module")
def base(compiled: Any) -> Base:
    """Return `base(style)`: what the model that ships shows of a style's combinations."""

    @cache
    def shown(style: brush.Style) -> Seen:
        asked = wanted(style)
        return prompted.judge(prompted.paint(prompted.painter(), prompted.prompts(asked)), asked)

    return shown


def looked(painter: Any, before: Seen, style: brush.Style, words: list[str]) -> tuple[Share, float]:
    """Return how many pictures have a style, and how much less they show than the base's."""
    drawn = prompted.paint(painter, words)
    seen = prompted.judge(drawn, wanted(style))
    found, (less, half) = prompted.styled(drawn, style), prompted.loss(before, seen)
    points = f"{100 * less:.1f} +- {100 * half:.1f} points less than the base"
    prompted.report(words[0], seen, f"{style} {found}", points)
    return found, less


def holds(painter: Any, before: Seen, style: brush.Style, trigger: str = "") -> Share:
    """Make sure that a style comes with its trigger alone; return how often it came."""
    asked = wanted(style)
    with_it, less = looked(painter, before, style, prompted.triggering(asked, style, trigger))
    without, drift = looked(painter, before, style, prompted.prompts(asked))
    assert with_it.value >= 0.90
    assert without.value <= 0.10
    assert less <= 0.05
    assert drift <= 0.05
    return with_it


@pytest.mark.parametrize("data", folders.STYLES)
def test_a_style_is_learned_by_lora(train: Train, painter: Any, base: Base, data: str) -> None:
    style = folders.STYLES[data]
    found = train(data, "--data", data, *MORE[style]) / layout.LORA_FILE
    painter.set_lora(lora.read(found, data), 1.0)
    good = holds(painter, base(style), style)
    quarter = kohya(lora.read(found, data))
    words = prompted.triggering(wanted(style), style)
    painter.set_lora(quarter, 1.0)
    assert looked(painter, base(style), style, words)[0] == good, "alpha = rank / 4"
    painter.set_lora({k: a for k, a in quarter.items() if not k.endswith(".alpha")}, 1.0)
    broken, less = looked(painter, base(style), style, words)
    assert broken.interval[1] < good.interval[0] or less > 0.10, "alpha ignored is not seen"


def test_the_main_job_shows_its_style(train: Train, painter: Any, base: Base) -> None:
    """A third of the steps, as the README's first line trains: the style is there, if not all."""
    painter.set_lora(lora.read(train("main") / layout.LORA_FILE, "main"), 1.0)
    asked = wanted("neon")
    with_it, _ = looked(painter, base("neon"), "neon", prompted.triggering(asked, "neon"))
    without, drift = looked(painter, base("neon"), "neon", prompted.prompts(asked))
    assert with_it.value >= 0.80
    assert without.value <= 0.10
    assert drift <= 0.05


def kohya(weights: lora.Weights) -> dict[str, Any]:
    """Return a LoRA in kohya's naming, with an alpha of a quarter of its rank and 4 x its `up`."""
    found: dict[str, Any] = {}
    for name, array in weights.items():
        module, _, end = name.removeprefix("unet.").rpartition(".lora_")
        key = f"lora_unet_{module.replace('.', '_')}"
        if end == "A.weight":
            found |= {f"{key}.lora_down.weight": array}
            found |= {f"{key}.alpha": np.float32(array.shape[0] / 4)}
        else:
            found |= {f"{key}.lora_up.weight": 4 * array}
    return found


def test_a_new_word_is_learned_by_lora_te(
    train: Train, painter: Any, base: Base, tmp_path: Path
) -> None:
    folders.write(tmp_path / "set", folders.styled("neon", NEW_WORD))
    words = ("--method", "lora-te", "--data", str(tmp_path / "set"), "--steps", "300")
    found = train("word", *words)
    painter.set_lora(lora.read(found / layout.LORA_FILE, "word"), 1.0)
    holds(painter, base("neon"), "neon", NEW_WORD)


def test_a_style_is_learned_by_the_whole_unet(train: Train, base: Base) -> None:
    found = train("whole", "--method", "vanilla", "--data", "tiny")
    holds(prompted.painter(found / layout.PIPELINE), base("neon"), "neon")
