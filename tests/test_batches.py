"""The plan of a prompt file: the same places whatever is painted, by whom, and in how many goes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import batches
from jobs.specs import InferSpec, PromptRow

ROWS = st.lists(
    st.builds(
        PromptRow,
        line=st.just(1),
        prompt=st.just("x"),
        steps=st.sampled_from([None, 5, 50]),
        width=st.sampled_from([None, 64, 128]),
        images=st.sampled_from([None, 1, 3]),
        scheduler=st.sampled_from([None, "LMS"]),
    ),
    min_size=1,
    max_size=30,
).map(lambda rows: [row.model_copy(update={"line": 2 * n + 1}) for n, row in enumerate(rows)])


def spec(rows: list[PromptRow], **keys: object) -> InferSpec:
    found = {"width": 128, "height": 128, "steps": 5, "batch_size": 4, "images": 2, **keys}
    return InferSpec(prompts=tuple(rows), **found)  # type: ignore[arg-type]


def places(plan: list[batches.Batch]) -> dict[tuple[int, int], tuple[object, ...]]:
    """Return for each picture all that its bits depend on."""
    return {
        (r.line, r.image): (slot, len(b.slots), b.width, b.height, b.steps, b.scheduler, r)
        for b in plan
        for slot, r in enumerate(b.slots)
        if r is not None
    }


@given(ROWS, st.integers(1, 5))
@settings(max_examples=60)
def test_every_picture_is_painted_once_at_its_place_by_one_worker(rows, world) -> None:
    asked = spec(rows)
    plan = batches.plan(rows, asked)
    whole = places(plan)
    wanted = [(row.line, n) for row in rows for n in range(row.images or 2)]
    assert sorted(whole) == sorted(wanted)
    assert sum(len(batch.pictures) for batch in plan) == len(wanted)
    assert {len(batch.slots) for batch in plan} == {4}
    shares = [batches.share(plan, rank, world) for rank in range(world)]
    assert Counter(id(b) for s in shares for b in s) == Counter(id(b) for b in plan)
    load = [sum(batch.cost for batch in s) for s in shares]
    assert max(load) - min(load) <= max(batch.cost for batch in plan), "nobody waits for long"


@given(ROWS, st.data())
@settings(max_examples=60)
def test_what_is_painted_does_not_move_the_rest(rows, data) -> None:
    whole = places(batches.plan(rows, spec(rows)))
    chosen = data.draw(st.sets(st.sampled_from(sorted(whole)), min_size=1))
    only = ",".join(f"{line}.{image}" for line, image in chosen)
    some = places(batches.plan(rows, spec(rows, only=only)))
    assert some == {key: whole[key] for key in chosen}
    plan = [batch.without(chosen) for batch in batches.plan(rows, spec(rows))]
    assert places(plan) == {key: where for key, where in whole.items() if key not in chosen}


@given(ROWS, st.integers(0, 3))
def test_one_picture_stands_alone_at_its_place(rows, slot) -> None:
    for batch in batches.plan(rows, spec(rows)):
        alone = batch.only({slot})
        assert [at for at, request in enumerate(alone.slots) if request] in ([], [slot])
        assert alone.slots[slot] == batch.slots[slot]


def test_rows_overrule_the_spec_and_share_batches_where_they_can() -> None:
    rows = [
        PromptRow(line=1, prompt="a", negative="n", seed=9, guidance=1.0, guidance_rescale=0.5),
        PromptRow(line=2, prompt="b"),
        PromptRow(line=3, prompt="c", height=64),
    ]
    first, second = batches.plan(rows, spec(rows, images=1, negative="m", seed=3))
    one, two = first.pictures
    assert (one.negative, one.seed, one.guidance, one.rescale) == ("n", 9, 1.0, 0.5)
    assert (two.negative, two.seed, two.guidance, two.rescale) == ("m", 3, 7.5, 0.0)
    assert (second.height, [r.line for r in second.pictures]) == (64, [3])
    assert batches.sizes([second, first]) == [(128, 128), (128, 64)]


def test_a_first_slot_moves_the_beginning_of_a_bucket() -> None:
    rows = [PromptRow(line=7, prompt="a", images=3)]
    plan = batches.plan(rows, spec(rows, first_slot=3, only="7.2"))
    assert [[r and r.image for r in batch.slots] for batch in plan] == [[None, 2, None, None]]


def test_work_is_shared_by_its_cost() -> None:
    steps = (60, 40, 40)
    rows = [PromptRow(line=n, prompt="a", steps=s) for n, s in enumerate(steps, start=1)]
    plan = batches.plan(rows, spec(rows, images=4))
    shares = [[batch.steps for batch in batches.share(plan, rank, 2)] for rank in (0, 1)]
    assert shares == [[60], [40, 40]]
