"""The inference worker in this process: identity of pictures, failures, recipes.

The painter is real and compiled once; what is replaced is the loading of another one for each run.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

from safetensors.numpy import save_file  # noqa: E402

from jobs import commits, draws, graphs, infer, layout, lora, lorasource, recipes, sampling, specs  # noqa: E402
from jobs.environment import Environment, Worker  # noqa: E402
from jobs.errors import BadData, BadSpec, Stopped  # noqa: E402
from jobs.msrun import SUPERVISOR  # noqa: E402
from jobs.outbox import Outbox  # noqa: E402
from jobs.prompts import to_json_lines  # noqa: E402
from jobs.sampling import Painter  # noqa: E402
from jobs.specs import InferSpec, PromptFile, PromptRow  # noqa: E402
from jobs.stores import FileStore  # noqa: E402

ROWS = (
    PromptRow(line=1, prompt="a red circle", images=2),
    PromptRow(line=3, prompt="a blue square", negative="red", seed=5, guidance=3.0),
    PromptRow(line=4, prompt="a dot", scheduler="EulerAncestral"),
    PromptRow(line=6, prompt="a green square", guidance_rescale=0.7),
    PromptRow(line=7, prompt="two yellow dots", steps=3),
    PromptRow(line=9, prompt="a red circle", images=2),
    PromptRow(line=12, prompt="a line", scheduler="EulerAncestral"),
)
PICTURES = 9
Row = dict[str, Any]


@pytest.fixture(scope="module")
def folder(random_sdxl: Path) -> Path:
    ms.set_context(mode=ms.GRAPH_MODE)
    return random_sdxl


@pytest.fixture(scope="module")
def painters(folder: Path) -> Callable[[int], Painter]:
    made: dict[int, Painter] = {}

    def painter(batch: int) -> Painter:
        if batch not in made:
            made[batch] = Painter(folder, ms.float32, width=64, height=64, batch=batch)
            made[batch].compile(texts=True)
        return made[batch]

    return painter


class Job:
    """Runs of one prompt file, each with a work directory and a store of its own."""

    def __init__(self, folder: Path, place: Path) -> None:
        self.folder, self.place, self.count = folder, place, 0
        self.spec = InferSpec(
            model=str(folder), precision="fp32", width=64, height=64, steps=2, batch_size=3,
            prompts=ROWS,
        )  # fmt: skip

    def environment(self) -> Environment:
        self.count += 1
        work = self.place / f"work-{self.count}"
        (work / "graphs").mkdir(parents=True)
        store = str(self.place / f"store-{self.count}")
        return Environment(spec="", run="r", store=store, uid="u", work=work, device="CPU")

    def __call__(self, world: int = 1, *, done: list[Row] | None = None, **keys: Any) -> Painted:
        env = self.environment()
        spec = InferSpec.model_validate({**self.spec.model_dump(), **keys})
        if done:
            body = "".join(json.dumps(row) + "\n" for row in done).encode()
            FileStore(Path(env.store)).write(layout.key("r", layout.PICTURES), body)
        for rank in range(world):
            infer.run(env, spec, Worker(rank, world))
        return Painted(env.work)


class Painted:
    """What workers have handed over."""

    def __init__(self, work: Path) -> None:
        outbox = Outbox(work)
        files = sorted((outbox.root / layout.IMAGES).glob("*.png"))
        self.files = {path.name: path.read_bytes() for path in files}
        paths = sorted((outbox.root / "rows").glob("*.json"))
        self.rows = [json.loads(path.read_bytes()) for path in paths]
        self.summaries = outbox.summaries()


@pytest.fixture
def job(
    folder: Path,
    painters: Callable[[int], Painter],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Job:
    class Cache:
        def publish(self) -> None:
            pass

    def loaded(*_: Any, batch: int, **__: Any) -> Painter:
        return painters(batch)

    monkeypatch.setattr(sampling, "Painter", loaded)
    monkeypatch.setattr(graphs, "open_cache", lambda *_: Cache())
    monkeypatch.setattr(painters(3), "compile", lambda *_, **__: None)
    return Job(folder, tmp_path)


@pytest.fixture
def whole(job: Job) -> Painted:
    return job()


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture)


def test_pictures_are_the_same_whoever_paints_them_and_in_how_many_goes(
    job: Job, whole: Painted
) -> None:
    assert len(whole.files) == PICTURES
    assert len(set(whole.files.values())) == PICTURES
    two = job(2)
    assert two.files == whole.files
    assert {row["worker"] for row in two.rows} == {0, 1}
    half = whole.rows[::2]
    rest = job(done=half)
    assert sorted(rest.files) == sorted(Path(row["file"]).name for row in whole.rows[1::2])
    assert rest.files.items() <= whole.files.items()


def test_what_is_committed_leaves_a_hole_at_its_place(
    job: Job, whole: Painted, painters: Callable[[int], Painter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On some devices a picture's bits depend on its place; on this one that cannot be seen."""
    painter, seen = painters(3), []
    paint = painter.paint

    def watched(slots: Any, **how: Any) -> Any:
        seen.append(tuple(slots))
        return paint(slots, **how)

    monkeypatch.setattr(painter, "paint", watched)
    place = {(row["line"], row["image"]): row["slot"] for row in whole.rows}
    done = whole.rows[1::4]
    rest = job(done=done)
    left = place.keys() - {(row["line"], row["image"]) for row in done}
    assert {(row["line"], row["image"]): row["slot"] for row in rest.rows} == {
        key: place[key] for key in left
    }
    painted = [
        ((r.line, r.image), slot) for slots in seen for slot, r in enumerate(slots) if r is not None
    ]
    assert sorted(painted) == sorted((key, place[key]) for key in left)
    assert {len(slots) for slots in seen} == {3}
    assert len(seen) < len(painted), "what is left of a batch is painted in one go"


def test_latents_are_the_same_beside_others_holes_and_in_a_short_batch(
    painters: Callable[[int], Painter],
) -> None:
    painter = painters(3)
    a, b, c = (sampling.Request(n, 0, f"number {n}", None, 0) for n in (1, 2, 3))
    whole = painter.sample([a, b, c], steps=2)
    for slots in ([a], [a, None, None], [None, b], [None, b, None], [None, None, c], [a, None, c]):
        found = painter.sample(slots, steps=2)
        assert found.shape == whole.shape
        for slot, request in enumerate(slots):
            assert request is None or np.array_equal(found[slot], whole[slot])


def test_noise_is_of_seed_line_and_image_and_not_of_the_place(
    painters: Callable[[int], Painter], monkeypatch: pytest.MonkeyPatch
) -> None:
    painter, seen = painters(3), []

    def silent(x: np.ndarray, *_: Any) -> np.ndarray:
        seen.append(x)
        return np.zeros_like(x)

    monkeypatch.setattr(painter, "_predict", silent)
    a, b, c = (
        sampling.Request(*place, "x", None, seed)
        for *place, seed in ((7, 2, 5), (7, 1, 5), (8, 2, 6))
    )
    painter.sample([a, b, c], steps=1)
    painter.sample([c, None, a], steps=1)
    table = painter.table(None, 1)
    for slot, r in enumerate((a, b, c)):
        noise = draws.picture_noise(r.seed, r.line, r.image, (4, 8, 8))
        expected = noise * np.float32(table.sigma) * np.float32(table.steps[0].scale)
        assert np.array_equal(seen[0][slot], expected)
    assert np.array_equal(seen[1][[0, 2]], seen[0][[2, 0]])


def test_each_picture_alone_is_the_same(job: Job, whole: Painted) -> None:
    for row in whole.rows:
        name = Path(row["file"]).name
        alone = job(only=f"{row['line']}.{row['image']}")
        assert alone.files == {name: whole.files[name]}


def test_a_recipe_paints_its_picture_again(job: Job, whole: Painted) -> None:
    for name in ("00001-01.png", "00003-00.png", "00012-00.png"):
        with Image.open(io.BytesIO(whole.files[name])) as picture:
            keys = recipes.spec_of({str(k): v for k, v in picture.info.items()}, name)
        env = job.environment()
        spec = specs.parse({"kind": "infer", **keys})
        assert isinstance(spec, InferSpec)
        infer.run(env, spec, Worker(0, 1))
        assert Painted(env.work).files == {name: whole.files[name]}


def test_rows_tell_all_settings(whole: Painted) -> None:
    by_line = {row["line"]: row for row in whole.rows}
    assert len(by_line) == len(ROWS)
    expected = {
        "line": 3, "image": 0, "prompt": "a blue square", "negative": "red", "seed": 5,
        "scheduler": "EulerDiscrete", "steps": 2, "guidance": 3.0, "guidance_rescale": 0.0,
        "width": 64, "height": 64, "slot": 2, "worker": 0, "file": "images/00003-00.png",
    }  # fmt: skip
    assert expected.items() <= by_line[3].items()
    assert by_line[4]["scheduler"] == "EulerAncestral"
    assert by_line[7]["steps"] == 3
    (summary,) = whole.summaries
    assert summary["painted"] == summary["asked"] == PICTURES
    assert set(summary["steps"]) == {"EulerDiscrete", "EulerAncestral"}
    assert {"text", "denoise", "decode", "encode"} == set(summary["split"])


def test_a_text_is_encoded_once(
    job: Job, painters: Callable[[int], Painter], monkeypatch: pytest.MonkeyPatch
) -> None:
    painter, seen = painters(3), []
    painter.embeddings.clear()
    encoded = painter._encoded

    def counted(text: str) -> Any:
        seen.append(text)
        return encoded(text)

    monkeypatch.setattr(painter, "_encoded", counted)
    job()
    assert sorted(seen) == sorted({row.prompt for row in ROWS} | {"red"})


def test_the_compiled_encoders_say_what_the_encoders_say(
    job: Job, painters: Callable[[int], Painter]
) -> None:
    painter = painters(3)
    for text in ("a red circle", ""):
        for ours, theirs in zip(painter._encoded(text), painter.encoders.encode(text), strict=True):
            assert ours.shape == theirs.shape
            assert np.abs(ours - theirs).max() < 1e-5
    assert np.abs(painter._encoded("a dot")[0] - painter._encoded("a line")[0]).max() > 0.1


def test_the_time_counts_from_the_start_of_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SUPERVISOR, raising=False)
    own = infer.age()
    with subprocess.Popen(["sleep", "60"]) as younger:
        monkeypatch.setenv(SUPERVISOR, str(younger.pid))
        assert 0 <= infer.age() < own
        younger.kill()


def test_long_prompts_are_counted(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    rows = (PromptRow(line=2, prompt="a red circle " * 30), PromptRow(line=5, prompt="x" * 74))
    with caplog.at_level(logging.WARNING, "jobs.infer"):
        painted = job(prompts=(*rows, PromptRow(line=9, prompt="a cat")))
    assert painted.summaries[0]["cut"] == 1
    assert "cut=1 prompts after 77 tokens: lines 2" in caplog.text


def broken(painter: Painter, word: str) -> tuple[Any, np.ndarray]:
    """Make a word's embedding no number, in the first encoder; return how it was."""
    number = painter.encoders.tokenizers[0](word).input_ids[1]
    table = next(
        p for name, p in painter.encoders.cells[0].parameters_and_names()
        if "token_embedding" in name
    )  # fmt: skip
    was = table.asnumpy().copy()
    bad = was.copy()
    bad[number] = np.nan
    table.set_data(ms.Tensor(bad))
    painter.embeddings.clear()
    return table, was


def test_a_picture_that_fails_is_tried_once_more_and_told(
    job: Job,
    whole: Painted,
    painters: Callable[[int], Painter],
    caplog: pytest.LogCaptureFixture,
) -> None:
    painter = painters(3)
    table, was = broken(painter, "blue")
    try:
        with caplog.at_level(logging.WARNING, "jobs.infer"):
            painted = job()
    finally:
        table.set_data(ms.Tensor(was))
        painter.embeddings.clear()
    (summary,) = painted.summaries
    reason = "not a number; choose a wider precision"
    assert summary["failures"] == [{"line": 3, "image": 0, "reason": reason}]
    assert summary["painted"] == PICTURES - 1
    assert caplog.text.count("again line=3 image=0") == 1
    others = {name: png for name, png in whole.files.items() if name != "00003-00.png"}
    assert painted.files == others, "neighbours of a failed picture are what they were"


def test_a_place_that_is_empty_fails_with_nobody(
    job: Job, painters: Callable[[int], Painter]
) -> None:
    """Line 3 alone, at the third place: the two before it are painted with its own text."""
    painter = painters(3)
    table, was = broken(painter, "blue")
    try:
        painted = job(only="3")
    finally:
        table.set_data(ms.Tensor(was))
        painter.embeddings.clear()
    assert [row["line"] for row in painted.summaries[0]["failures"]] == [3]
    assert (painted.files, painted.rows) == ({}, [])


@pytest.mark.parametrize(("times", "failed"), [(1, 0), (2, 1)])
def test_a_device_without_room_is_given_a_second_chance(
    job: Job,
    whole: Painted,
    painters: Callable[[int], Painter],
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    failed: int,
) -> None:
    left = [times]
    painter = painters(3)
    real = painter._predict

    def crowded(*arguments: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise RuntimeError("Device(id:0) memory isn't enough and alloc failed, kernel name: x")
        return real(*arguments)

    monkeypatch.setattr(painter, "_predict", crowded)
    painted = job()
    failures = painted.summaries[0]["failures"]
    assert [row["reason"][:13] for row in failures] == ["out of memory"] * failed
    assert len(painted.files) == PICTURES - failed
    assert painted.files.items() <= whole.files.items()


def test_another_error_is_a_bug(
    job: Job, painters: Callable[[int], Painter], monkeypatch: pytest.MonkeyPatch
) -> None:
    painter = painters(3)

    def wrong(*_: Any) -> Any:
        raise RuntimeError("For 'Add', the shapes do not fit")

    monkeypatch.setattr(painter, "_predict", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        job()


def test_a_stop_ends_between_two_batches_with_all_handed_over(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = job.environment()
    outbox = Outbox(env.work)
    paint = infer.paint

    def stopping(session: Any, batch: Any) -> None:
        paint(session, batch)
        outbox.stop.touch()

    monkeypatch.setattr(infer, "paint", stopping)
    with pytest.raises(Stopped):
        infer.run(env, job.spec, Worker(0, 1))
    assert len(Painted(env.work).rows) == 3


@pytest.mark.parametrize(
    ("keys", "told"), [({"width": 72}, ""), ({"only": "5-2"}, "only: '5-2' runs backwards")]
)
def test_what_cannot_be_painted_is_refused_before_compiling(
    job: Job,
    keys: Row,
    told: str,
    painters: Callable[[int], Painter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    painter = painters(3)
    if not told:
        monkeypatch.setattr(painter, "factor", 16)
        told = "size 72x64: this model wants multiples of 16"
    with pytest.raises(BadSpec) as caught:
        job(**keys)
    assert told in str(caught.value)


def test_prompts_in_the_store_are_those_that_were_submitted(tmp_path: Path) -> None:
    body = to_json_lines(ROWS)
    digest = hashlib.sha256(body).hexdigest()
    store, key = FileStore(tmp_path), layout.prompts_key(digest)
    spec = InferSpec(prompts=PromptFile(key=key, sha256=digest))
    with pytest.raises(BadData, match="not in the store"):
        infer.prompts(spec, store)
    store.write(key, body)
    assert infer.prompts(spec, store) == ROWS
    store.write(key, to_json_lines(ROWS[1:]))
    with pytest.raises(BadData, match="not the file that was submitted"):
        infer.prompts(spec, store)


def test_a_recipe_names_what_was_submitted_and_not_a_copy_on_this_node(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    here = InferSpec(prompts=ROWS, model="/cache/0a1b", vae="/cache/2c3d", steps=7)
    assert infer.as_submitted(store, "r", here) == here
    given = {"model": "s3://bucket/sdxl", "vae": "s3://bucket/vae", "lora": None, "steps": 9}
    store.write(layout.key("r", layout.SPEC), json.dumps({"spec": given}).encode())
    found = infer.as_submitted(store, "r", here)
    assert (found.model, found.vae, found.steps) == ("s3://bucket/sdxl", "s3://bucket/vae", 7)


@pytest.mark.slow
def test_batch_sizes_differ_by_rounding_only(
    job: Job, whole: Painted, painters: Callable[[int], Painter]
) -> None:
    painters(1).compile = lambda *_, **__: None  # type: ignore[method-assign]
    single = job(batch_size=1)
    assert single.files.keys() == whole.files.keys()
    for name, png in single.files.items():
        difference = np.abs(pixels(png).astype(int) - pixels(whole.files[name]).astype(int))
        assert difference.max() <= 2
        assert np.mean(difference > 0) <= 0.005


def test_seeds_of_rows_win(job: Job, whole: Painted) -> None:
    row = ROWS[0].model_copy(update={"seed": 77})
    seeded = job(prompts=(row,), seed=1)
    assert all(whole.files[name] != png for name, png in seeded.files.items())
    assert {row["seed"] for row in seeded.rows} == {77}
    assert seeded.files == job(prompts=(ROWS[0],), seed=77).files


@pytest.fixture
def adapted(painters: Callable[[int], Painter]) -> Iterator[Painter]:
    """Yield the painter, whose weights and samplers are put back."""
    painter = painters(3)
    first, second = painter.encoders.cells
    yield painter
    cells = {"unet": painter.unet, "text_encoder": first, "text_encoder_2": second}
    lora.restore(cells, painter.pristine)
    painter.pristine, painter.prediction = {}, None
    painter.tables.clear()
    painter.embeddings.clear()


MODULE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def lora_file(path: Path, painter: Painter, factor: float, width: int = 0) -> Path:
    """Write a LoRA of one module; of another width it fits no more."""
    side = lora.modules({"unet": painter.unet})[MODULE].shape[0]
    rng = np.random.default_rng(8)
    down = rng.standard_normal((2, width or side)).astype(np.float32)
    up = factor * rng.standard_normal((side, 2)).astype(np.float32)
    rows = {f"{MODULE}.lora_A.weight": down, f"{MODULE}.lora_B.weight": up.astype(np.float32)}
    save_file(rows, path, {"format": "pt"})
    return path


def test_a_lora_of_a_run_brings_what_its_unet_predicts(
    job: Job, whole: Painted, adapted: Painter, tmp_path: Path
) -> None:
    env = job.environment()
    draft = tmp_path / "draft"
    draft.mkdir()
    lora_file(draft / layout.LORA_FILE, adapted, 0.0)
    state = {"step": 4, "spec": {"prediction_type": "v_prediction"}}
    (draft / lorasource.STATE).write_text(json.dumps(state))
    prefix = layout.key("cats", layout.CHECKPOINTS, layout.step_name(4))
    commits.commit(FileStore(Path(env.store)), prefix, draft)
    adapted.tables.clear()
    spec = job.spec.model_copy(update={"lora": "cats", "only": "1,3"})
    infer.run(env, spec, Worker(0, 1))
    found = Painted(env.work)
    adapted.tables.clear()
    expected = job(prediction_type="v_prediction", only="1,3")
    assert len(found.files) == 3
    for name, png in found.files.items():
        assert np.array_equal(pixels(png), pixels(expected.files[name]))
        assert not np.array_equal(pixels(png), pixels(whole.files[name]))
        with Image.open(io.BytesIO(png)) as picture:
            recipe = json.loads(str(picture.info["recipe"]))
        assert (recipe["lora"], recipe["lora_step"]) == ("cats", 4)


def test_a_file_that_was_submitted_is_merged_and_no_other(
    job: Job, whole: Painted, adapted: Painter, tmp_path: Path
) -> None:
    path = lora_file(tmp_path / "cat.safetensors", adapted, 1.0)
    data = path.read_bytes()
    key = layout.lora_key(hashlib.sha256(data).hexdigest(), path.name)
    env = job.environment()
    store = FileStore(Path(env.store))
    spec = job.spec.model_copy(update={"lora": key, "only": "1", "lora_weight": 0.8})
    with pytest.raises(BadSpec, match=r"lora cat\.safetensors: cache/loras/\w+/.* is not in the"):
        infer.run(env, spec, Worker(0, 1))
    store.write(key, data[:-1] + b"x")
    with pytest.raises(BadData, match="is not the file that was"):
        infer.run(env, spec, Worker(0, 1))
    store.write(key, data)
    infer.run(env, spec, Worker(0, 1))
    found = Painted(env.work)
    assert sorted(found.files) == ["00001-00.png", "00001-01.png"]
    for name, png in found.files.items():
        assert not np.array_equal(pixels(png), pixels(whole.files[name]))
        with Image.open(io.BytesIO(png)) as picture:
            assert "Lora: cat" in str(picture.info["parameters"])


def test_a_lora_that_does_not_fit_ends_before_anything_is_painted(
    job: Job, adapted: Painter, tmp_path: Path
) -> None:
    path = lora_file(tmp_path / "cat.safetensors", adapted, 1.0, width=7)
    side = lora.modules({"unet": adapted.unet})[MODULE].shape[0]
    with pytest.raises(BadSpec) as caught:
        job(lora=str(path))
    told = f"[2, 7] does not fit the model's {MODULE} [{side}, {side}]"
    assert str(caught.value) == f"lora cat.safetensors: {MODULE}.lora_A.weight {told}"
    assert not list(job.place.glob("work-*/outbox/images/*"))


def test_what_a_sampler_adds_is_drawn_for_each_picture_and_step() -> None:
    request = sampling.Request(3, 1, "x", None, 7)
    places = [(3, 1, 0), (3, 1, 1), (3, 2, 0), (4, 1, 0), (1, 3, 0)]
    drawn = [
        sampling.step_noise(sampling.Request(line, image, "x", None, 7), step, (4, 8, 8))
        for line, image, step in places
    ]
    drawn.append(sampling.step_noise(sampling.Request(3, 1, "x", None, 8), 0, (4, 8, 8)))
    drawn.append(draws.picture_noise(7, 3, 1, (4, 8, 8)))
    flat = np.stack(drawn).reshape(len(drawn), -1)
    assert np.array_equal(flat[0], sampling.step_noise(request, 0, (4, 8, 8)).ravel())
    closeness = np.abs(np.corrcoef(flat) - np.eye(len(flat)))
    assert closeness.max() < 0.25, "256 numbers: three deviations are 0.19"
