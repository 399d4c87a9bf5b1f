"""What a step is fed with: by seed and place alone, with noise, weights and dropped captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

from untrained import VAE

from jobs import diffusion, draws
from jobs.environment import Worker
from jobs.errors import BadSpec
from jobs.feed import Feed
from jobs.specs import TrainSpec
from jobs.tiny.recipe.pipeline import MODEL_INDEX, SDXL_SCHEDULER

NAMES = ("noisy", "timesteps", "time_ids", "target", "weight", "keep", "text", "text_2")
COUNT, SIZE = 24, 4
ALONE = Worker(0, 1)


class Rows:
    """Samples in memory, each filled with its own number."""

    count, views = COUNT, 1

    def variants(self, index: int) -> int:
        return 1

    def row(self, index: int, view: int, variant: int) -> tuple[np.ndarray, ...]:
        mean = np.full((4, SIZE, SIZE), index, np.float32)
        moments = np.concatenate([mean, np.full_like(mean, -30.0)])  # no spread
        ids, text, pooled = (np.full(n, index, np.float32) for n in ((6,), (77, 8), (8,)))
        return moments, ids, text, pooled


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, found in (
        ("model_index.json", MODEL_INDEX),
        ("scheduler/scheduler_config.json", SDXL_SCHEDULER),
        ("vae/config.json", VAE),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(found))
    return tmp_path


def fed(
    folder: Path, step: int = 0, part: int = 0, worker: Worker = ALONE, **given: Any
) -> dict[str, np.ndarray]:
    feed = Feed(Rows(), TrainSpec(**given), worker, folder)  # type: ignore[arg-type]
    inputs = feed.inputs(step, part)
    return {name: value.asnumpy() for name, value in zip(NAMES, inputs, strict=True)}


def test_a_step_sees_the_same_samples_however_it_is_cut(folder: Path) -> None:
    whole = fed(folder, step=3, batch_size=4)
    parts = [fed(folder, 3, part, batch_size=2, accumulate=2) for part in range(2)]
    workers = [fed(folder, 3, 0, Worker(rank, 2), batch_size=2) for rank in range(2)]
    both = [
        fed(folder, 3, part, Worker(rank, 2), batch_size=1, accumulate=2)
        for part in range(2)
        for rank in range(2)
    ]
    for cut in (parts, workers, both):
        for name in NAMES:
            assert np.array_equal(np.concatenate([one[name] for one in cut]), whole[name]), name
    assert not np.array_equal(fed(folder, step=4, batch_size=4)["noisy"], whole["noisy"])


def test_what_is_read_ahead_is_the_batch_of_its_own_place(folder: Path) -> None:
    given = {"batch_size": 2, "accumulate": 2}
    feed = Feed(Rows(), TrainSpec(**given), Worker(0, 1), folder)  # type: ignore[arg-type]
    for place in [(0, 0), (0, 1), (1, 0), (5, 1), (6, 0), (6, 0)]:
        found = dict(zip(NAMES, (part.asnumpy() for part in feed.inputs(*place)), strict=True))
        alone = fed(folder, *place, **given)
        for name in NAMES:
            assert np.array_equal(found[name], alone[name]), (place, name)


def test_in_a_run_each_row_is_read_once_and_ahead(folder: Path) -> None:
    class Counted(Rows):
        reads = 0

        def row(self, index: int, view: int, variant: int) -> tuple[np.ndarray, ...]:
            self.reads += 1
            return super().row(index, view, variant)

    rows = Counted()
    spec = TrainSpec(batch_size=2, accumulate=2)
    feed = Feed(rows, spec, Worker(0, 1), folder)  # type: ignore[arg-type]
    places = [(step, part) for step in range(3) for part in range(2)]
    for place in places:
        feed.inputs(*place)
    feed._reader.shutdown()
    assert rows.reads == 2 * (len(places) + 1)


def test_a_caption_is_drawn_for_each_sample_and_nothing_else_goes_by_it(folder: Path) -> None:
    class Several(Rows):
        def variants(self, index: int) -> int:
            return 1 + index % 4

        def row(self, index: int, view: int, variant: int) -> tuple[np.ndarray, ...]:
            moments, ids, text, pooled = super().row(index, view, variant)
            return moments, ids, text + 100 * variant, pooled + 100 * variant

    spec = TrainSpec(batch_size=240)
    found, one = (
        dict(zip(NAMES, (part.asnumpy() for part in feed.inputs(2)), strict=True))
        for feed in (Feed(rows(), spec, ALONE, folder) for rows in (Several, Rows))  # type: ignore[arg-type]
    )
    for name in set(NAMES) - {"text", "text_2"}:
        assert np.array_equal(found[name], one[name]), name
    variants, index = np.divmod(found["text"][:, 0, 0].astype(int), 100)
    assert np.array_equal(found["text_2"][:, 0], found["text"][:, 0, 0])
    for number in range(4):
        counts = np.bincount(variants[index % 4 == number], minlength=4)
        assert counts[number + 1 :].sum() == 0
        assert np.abs(counts[: number + 1] - 60 / (number + 1)).max() < 17  # four deviations


def test_a_sample_shows_one_view_with_its_own_size_and_crop(folder: Path) -> None:
    class Views(Rows):
        views = 4

        def row(self, index: int, view: int, variant: int) -> tuple[np.ndarray, ...]:
            moments, _, text, pooled = super().row(index, view, variant)
            return moments, 100 * view + np.arange(6, dtype=np.float32), text, pooled

    spec = TrainSpec(batch_size=200)
    feed = Feed(Views(), spec, ALONE, folder)  # type: ignore[arg-type]
    ids = dict(zip(NAMES, (part.asnumpy() for part in feed.inputs(1)), strict=True))["time_ids"]
    assert np.array_equal(ids - ids[:, :1], np.tile(np.arange(6), (200, 1)))
    seen = (ids[:, 0] / 100).astype(int)
    assert seen.tolist() == [draws.view(spec.seed, place, 4) for place in range(200, 400)]
    assert set(seen) == {0, 1, 2, 3}


def test_latents_are_drawn_from_their_posterior_by_noise_of_their_own(folder: Path) -> None:
    class Spread(Rows):
        def row(self, index: int, view: int, variant: int) -> tuple[np.ndarray, ...]:
            moments, ids, text, pooled = super().row(index, view, variant)
            moments[4:] = 0.0  # a deviation of 1
            return moments, ids, text, pooled

    feed = Feed(Spread(), TrainSpec(batch_size=64), ALONE, folder)  # type: ignore[arg-type]
    found = dict(zip(NAMES, (part.asnumpy() for part in feed.inputs(0)), strict=True))
    levels = diffusion.alpha_bars(SDXL_SCHEDULER)[found["timesteps"]].reshape(-1, 1, 1, 1)
    clean = (found["noisy"] - np.sqrt(1 - levels) * found["target"]) / np.sqrt(levels)
    numbers = found["time_ids"][:, 0].reshape(-1, 1, 1, 1)
    drawn = clean / VAE["scaling_factor"] - numbers
    expected = np.stack([draws.posterior_noise(0, place, (4, SIZE, SIZE)) for place in range(64)])
    assert np.allclose(drawn, expected, atol=2e-3)
    assert abs(np.corrcoef(drawn.ravel(), found["target"].ravel())[0, 1]) < 0.06  # four deviations


def test_dropout_keys_go_by_the_sample_too(folder: Path) -> None:
    def keys(step: int, part: int, worker: Worker, **given: Any) -> np.ndarray:
        feed = Feed(Rows(), TrainSpec(**given), worker, folder)  # type: ignore[arg-type]
        found: np.ndarray = feed.dropout_key(step, part).asnumpy()
        return found

    whole = keys(2, 0, Worker(0, 1), batch_size=4)
    cut = [keys(2, part, Worker(0, 1), batch_size=2, accumulate=2) for part in range(2)]
    assert np.array_equal(np.concatenate(cut), whole)
    assert len(np.unique(whole, axis=0)) == 4


def test_noise_is_what_makes_the_clean_latents_noisy(folder: Path) -> None:
    found = fed(folder, batch_size=8)
    levels = diffusion.alpha_bars(SDXL_SCHEDULER)[found["timesteps"]].reshape(-1, 1, 1, 1)
    numbers = found["time_ids"][:, 0].reshape(-1, 1, 1, 1)
    clean = (found["noisy"] - np.sqrt(1 - levels) * found["target"]) / np.sqrt(levels)
    assert np.allclose(clean, numbers * VAE["scaling_factor"], atol=1e-3)
    assert np.array_equal(found["weight"], np.ones(8))
    assert np.array_equal(found["keep"], np.ones(8))


def test_offset_noise_is_constant_over_a_channel(folder: Path) -> None:
    plain, offset = (fed(folder, batch_size=2, noise_offset=part) for part in (0.0, 0.3))
    added = offset["target"] - plain["target"]
    assert np.ptp(added, axis=(2, 3)).max() < 1e-6
    values = added[:, :, 0, 0]
    assert len(np.unique(values)) == 8
    many = fed(folder, batch_size=256, noise_offset=0.3)["target"].mean((2, 3))
    assert many.std() == pytest.approx(np.sqrt(0.3**2 + 1 / SIZE**2), rel=0.1)


def test_the_spec_may_say_what_is_predicted(folder: Path) -> None:
    noise = fed(folder, batch_size=4)
    v = fed(folder, batch_size=4, prediction_type="v_prediction", snr_gamma=5.0)
    assert np.array_equal(noise["noisy"], v["noisy"])
    levels = diffusion.alpha_bars(SDXL_SCHEDULER)[v["timesteps"]].astype(np.float64)
    clean = v["time_ids"][:, 0] * VAE["scaling_factor"]
    expected = np.sqrt(levels).reshape(-1, 1, 1, 1) * noise["target"] - (
        np.sqrt(1 - levels) * clean
    ).reshape(-1, 1, 1, 1)
    assert np.allclose(v["target"], expected, atol=1e-4)
    snr = levels / (1 - levels)
    assert np.allclose(v["weight"], np.minimum(snr, 5.0) / (snr + 1), rtol=1e-5)


def test_captions_are_dropped_by_a_mask(folder: Path) -> None:
    found = fed(folder, batch_size=200, caption_dropout=0.25)
    assert set(found["keep"]) == {0.0, 1.0}
    assert abs(found["keep"].mean() - 0.75) < 0.1


def test_a_model_without_zeros_for_no_caption_cannot_drop_them(folder: Path) -> None:
    index = {**MODEL_INDEX, "force_zeros_for_empty_prompt": False}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadSpec, match="set caption_dropout to 0"):
        fed(folder, caption_dropout=0.1)
    assert fed(folder)["keep"] == 1
