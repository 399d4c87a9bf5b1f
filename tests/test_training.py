"""What a spec makes of a step: rates by the step, the optimiser's options, what is trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore is not installed (extra: cpu)")

from jobs import methods, model, train  # noqa: E402
from jobs.environment import Environment, Worker  # noqa: E402
from jobs.errors import Stopped  # noqa: E402
from jobs.journal import Journal  # noqa: E402
from jobs.outbox import Outbox  # noqa: E402
from jobs.specs import TrainSpec  # noqa: E402
from jobs.step import Outcome  # noqa: E402


def spec(**given: Any) -> TrainSpec:
    return TrainSpec.model_validate({"precision": "fp32", "resolution": 64, **given})


def test_both_rates_go_by_warm_up_and_schedule() -> None:
    given = spec(
        method="lora-te", learning_rate=1e-3, text_encoder_learning_rate=1e-4, warmup_steps=2,
        steps=10, lr_schedule="linear",
    )  # fmt: skip
    found = [train.scalars(given, done) for done in (0, 1, 2, 6)]
    assert [one.number for one in found] == [1, 2, 3, 7]
    assert [one.lr for one in found] == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])
    assert [one.text_lr for one in found] == pytest.approx([5e-5, 1e-4, 1e-4, 5e-5])
    assert train.scalars(spec(method="lora-te", learning_rate=1e-3), 3).text_lr == 1e-3
    restarted = spec(lr_schedule="cosine-restarts", lr_cycles=2, steps=8, learning_rate=1e-3)
    assert train.scalars(restarted, 4).lr == pytest.approx(1e-3)
    asked = train.scalars(given, 0, stop=True)
    assert (asked.stop, asked.late) == (True, False)


def test_the_averages_decay_rises_to_its_limit() -> None:
    given = spec(method="vanilla", ema_decay=0.9)
    found = [train.scalars(given, done).decay for done in (0, 10, 1000)]
    assert found == pytest.approx([1 / 10, 11 / 20, 0.9])


def test_a_row_tells_the_rate_that_its_step_was_done_with() -> None:
    given = spec(warmup_steps=4, learning_rate=1e-3)
    this: Any = SimpleNamespace(spec=given, step=SimpleNamespace(scale=lambda: 8.0))
    row = train.row(this, 2, Outcome(0.5, 0.25, 0, 0, 16.0))
    assert (row.step, row.loss, row.grad_norm, row.loss_scale) == (2, 0.5, 0.25, 8.0)
    assert row.lr == pytest.approx(5e-4)


def looped(
    monkeypatch: pytest.MonkeyPatch, given: TrainSpec, done: int = 0, stop_at: int = 0
) -> list[str]:
    """Return what the loop does after `done` steps; the one at `stop_at` is told to stop."""
    told: list[str] = []

    def once(_this: Any, before: int) -> Outcome:
        told.append(f"step {before + 1}")
        return Outcome(0.5, 0.25, int(before + 1 == stop_at), 0, 1.0)

    monkeypatch.setattr(train, "once", once)
    monkeypatch.setattr(train, "save", lambda _this, n, *, ended: told.append(f"save {n}"))
    monkeypatch.setattr(train, "validate", lambda _painter, _this, n: told.append(f"paint {n}"))
    quiet = SimpleNamespace(
        seconds=[], tell=lambda _: None, is_due=lambda _: False, result=lambda *_: {}
    )
    outbox = SimpleNamespace(beat=lambda _: None, summarise=lambda *_: told.append("result"))
    this: Any = SimpleNamespace(
        spec=given, journal=quiet, outbox=outbox, worker=Worker(0, 1), painter=object(),
        step=SimpleNamespace(scale=lambda: 1.0),
    )  # fmt: skip
    try:
        train.loop(this, done, Any)  # type: ignore[arg-type]
    except Stopped:
        told.append("stopped")
    return told


def test_prompts_are_painted_as_often_as_asked_for_whatever_stops_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = spec(steps=5, save_every=4, validate_every=2, validation_prompts=["x"])
    calm = looped(monkeypatch, given)
    assert calm == [
        "step 1", "step 2", "paint 2", "step 3", "step 4", "save 4", "paint 4",
        "step 5", "save 5", "paint 5", "result",
    ]  # fmt: skip
    assert looped(monkeypatch, given, stop_at=2) == ["step 1", "step 2", "save 2", "stopped"]
    # From the checkpoints of 2, 4 and 5, before which nothing was painted, and of 3.
    for done in (2, 4, 5):
        assert looped(monkeypatch, given, done) == calm[calm.index(f"paint {done}") :]
    assert looped(monkeypatch, given, 3) == calm[calm.index("step 4") :]
    at_the_end = spec(steps=2, validation_prompts=["x"])
    assert looped(monkeypatch, at_the_end, 1) == ["step 2", "save 2", "paint 2", "result"]


OPTIONS: dict[str, tuple[str, Any]] = {
    "accumulate": ("accumulate", 3),
    "weight_decay": ("weight_decay", 0.5),
    "max_grad_norm": ("max_grad_norm", 2.5),
    "adam_beta1": ("beta1", 0.5),
    "adam_beta2": ("beta2", 0.75),
    "adam_epsilon": ("epsilon", 1e-3),
}


def test_the_optimiser_has_what_the_spec_says() -> None:
    plain = methods.options(spec(), Worker(1, 3))
    assert (plain.workers, plain.scaled, plain.average) == (3, False, False)
    for key, (name, value) in OPTIONS.items():
        assert getattr(plain, name) == getattr(spec(), key) != value
        assert getattr(methods.options(spec(**{key: value}), Worker(0, 1)), name) == value, key
    assert methods.options(spec(precision="fp16"), Worker(0, 1)).scaled
    assert methods.options(spec(method="vanilla", ema_decay=0.9), Worker(0, 1)).average


def test_whatever_is_baked_into_a_graph_is_in_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "config", lambda _folder, part: {"part": part})
    plain = methods.constants(Path(), spec())
    others = {key: value for key, (_, value) in OPTIONS.items()} | {
        "precision": "fp16", "resolution": 128, "batch_size": 2, "recompute": True,
        "flash_attention": False, "lora_rank": 8, "lora_alpha": 7.0, "lora_dropout": 0.5,
        "lora_targets": ["to_q"], "validation_prompts": ["x"],
    }  # fmt: skip
    for key, value in others.items():
        assert methods.constants(Path(), spec(**{key: value})) != plain, key
    kept = methods.constants(Path(), spec(seed=5, learning_rate=1e-6, steps=3, snr_gamma=5.0))
    assert kept == plain, "arguments of the graph"
    whole = methods.constants(Path(), spec(method="vanilla"))
    assert whole != methods.constants(Path(), spec(method="vanilla", ema_decay=0.5)) != plain


def test_text_encoders_are_a_group_of_their_own(
    random_sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again: list[Any] = []
    monkeypatch.setattr(methods, "recompute", again.append)
    step, key = methods.build(random_sdxl, ms.float32, spec(method="lora-te"), Worker(0, 1))
    main, text = step.update.groups()
    assert {name.partition(".")[0] for name in main.names} == {"unet"}
    assert {name.partition(".")[0] for name in text.names} == {"text_encoder", "text_encoder_2"}
    assert all(".lora_" in name for name in (*main.names, *text.names))
    assert (key, again) == (None, [])


def test_recompute_and_dropout_are_asked_for(
    random_sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again: list[Any] = []
    monkeypatch.setattr(methods, "recompute", again.append)
    given = spec(method="lora", recompute=True, lora_dropout=0.1, batch_size=3)
    step, key = methods.build(random_sdxl, ms.float32, given, Worker(0, 1))
    assert len(again) == 1
    assert key is not None
    assert key.shape == (3, 2)
    assert len(step.update.groups()) == 1


def test_recompute_reaches_every_resnet_and_attention() -> None:
    class Part:
        asked = 0

        def recompute(self) -> None:
            self.asked += 1

    def block(**kinds: int) -> Any:
        return SimpleNamespace(**{kind: [Part() for _ in range(n)] for kind, n in kinds.items()})

    unet = SimpleNamespace(
        down_blocks=[block(resnets=2), block(resnets=1, attentions=2)],
        mid_block=block(resnets=2, attentions=1), up_blocks=[block(attentions=1, resnets=1)],
    )  # fmt: skip
    methods.recompute(unet)
    parts = [
        part
        for one in (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
        for kind in vars(one).values()
        for part in kind
    ]
    assert len(parts) == 10
    assert all(part.asked == 1 for part in parts)


def test_speed_and_result_count_every_picture_of_a_step(tmp_path: Path) -> None:
    env = Environment(spec="", run="r", store="", uid="u", work=tmp_path)
    journal = Journal(env, spec(batch_size=2, accumulate=3, steps=4), Worker(0, 5))
    assert journal.speed() == {"ms_per_step": None, "img_s": None}
    journal.seconds += [60.0, 0.5, 0.5, 0.75]  # the first one compiles
    assert journal.speed() == {"ms_per_step": 500.0, "img_s": 60.0}
    result = journal.result(4, 0.5)
    assert (result["global_batch"], result["npus"], result["ended"]) == (30, 5, "steps")
    assert journal.result(3, 0.5)["ended"] == "max_minutes"


def test_the_times_of_all_attempts_are_in_the_result(tmp_path: Path) -> None:
    env = Environment(spec="", run="r", store="", uid="u", work=tmp_path)
    for seconds in (30.0, 4.0):
        Outbox(tmp_path).append("metrics.jsonl", {"compile_s": seconds, "step_s": 100.0})
    journal = Journal(env, spec(steps=4), Worker(0, 1))
    journal.clock.add("compile", 5.0)
    journal.clock.add("step", 1.0)
    result = journal.result(4, 0.5)
    assert (result["compile_s"], result["compile_all_s"], result["step_s"]) == (5.0, 39.0, 201.0)
