from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.errors import BadData, BadSpec
from jobs.prompts import Selection, form_of, from_json_lines, parse, selection, to_json_lines
from jobs.specs import InferSpec, PromptRow

# Whatever one line of a text editor can hold; U+FEFF is the byte order mark.
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\n\0\ufeff"))
PROMPTS = TEXTS.map(str.strip).filter(lambda text: text and not text.startswith("#"))
OTHERS = st.one_of(st.sampled_from(["", "   ", "\t"]), TEXTS.map(lambda text: "#" + text))
LINES = st.lists(
    st.one_of(PROMPTS.map(lambda text: (True, text)), OTHERS.map(lambda t: (False, t)))
)


@given(LINES, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
@example([(True, "a\u2028b"), (True, "c\x0bd"), (True, "e\x85f")], "\n", False, False)
def test_every_prompt_keeps_text_and_line_number(lines, end, mark, closed):
    expected = [(number, text) for number, (is_prompt, text) in enumerate(lines, 1) if is_prompt]
    data = end.join(text for _, text in lines).encode() + (end.encode() if closed else b"")
    data = b"\xef\xbb\xbf" * mark + data
    if not expected:
        with pytest.raises(BadData, match="holds no prompt"):
            list(parse(data, "p.txt"))
    else:
        assert [(row.line, row.prompt) for row in parse(data, "p.txt")] == expected


@given(st.lists(st.builds(PromptRow, line=st.integers(1, 10**6), prompt=PROMPTS), min_size=1))
@example([PromptRow(line=1, prompt='a\u2028b $(HOME) \\ "')])
def test_rows_survive_the_way_through_the_store(rows):
    assert from_json_lines(to_json_lines(tuple(rows)), "p.jsonl") == tuple(rows)


def test_old_line_ends_count_as_lines():
    assert [row.line for row in parse(b"a\rb\r\nc\nd", "p.txt")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "p.txt: holds no prompt"),
        (b"\n\n# nothing\n", "p.txt: holds no prompt"),
        (b"one\ntwo\0\n", "p.txt: is not text: byte 4 of line 2 is a zero byte"),
        (b"\0", "p.txt: is not text: byte 1 of line 1 is a zero byte"),
        (b"\x89PNG\r\n\x1a\n\0\0", "p.txt: is not text"),
        ("a cat".encode("utf-16"), "p.txt: is UTF-16 text, not UTF-8"),
        (
            b"one\ncaf\xe9\nthree\nna\xef",
            "line 2: is not UTF-8 text at byte 4 (0xe9); line 4: is not UTF-8 text at byte 3",
        ),
        (b"\xe9\n" * 24, "and 4 more"),
        (b"one\n" + b"x" * 1_000_000, "line 2: is 1,000,000 bytes long, and the limit is 32,768"),
    ],
)
def test_a_bad_file_is_told_by_name_and_place(data, told):
    with pytest.raises(BadData) as caught:
        list(parse(data, "p.txt"))
    assert told in str(caught.value)
    assert str(caught.value).startswith("p.txt: ")
    assert "\n" not in str(caught.value)


def test_bad_rows_are_all_named():
    data = b'{"line": 1, "prompt": "a"}\nnonsense\n{"line": 0, "prompt": ""}\n'
    with pytest.raises(BadData) as caught:
        from_json_lines(data, "p.jsonl")
    assert "line 2: " in str(caught.value)
    assert "JSON" in str(caught.value)
    assert "line 3: line: " in str(caught.value)


def test_a_json_row_says_what_the_spec_would():
    data = (
        b'{"prompt": " a cat ", "negative": "x", "seed": 7, "steps": 5, "guidance": 2.5, '
        b'"width": 64, "height": 136, "images": 3, "scheduler": "LMS", "guidance_rescale": 0.7}\n'
        b"\n"
        b'{"prompt": "a dog"}'
    )
    first, second = parse(data, "p.jsonl", "json")
    assert first == PromptRow(
        line=1, prompt="a cat", negative="x", seed=7, steps=5, guidance=2.5, width=64, height=136,
        images=3, scheduler="LMS", guidance_rescale=0.7,
    )  # fmt: skip
    assert second == PromptRow(line=3, prompt="a dog")
    assert to_json_lines([second]) == b'{"line":3,"prompt":"a dog"}\n'
    assert from_json_lines(to_json_lines([first, second]), "p") == (first, second)


BAD_ROWS = {
    '{"prompt": "x", "stesp": 3}': "stesp: unknown key",
    '{"prompt": "x", "line": 3}': "line: unknown key",
    '{"prompt": "x", "prompt": "y"}': "prompt: is given twice",
    '{"prompt": "x", "negative": "\\ud800"}': "negative: holds half of a surrogate pair",
    '{"prompt": "x", "steps": -3}': "steps: Input should be greater than or equal to 1, not -3",
    '{"prompt": "x", "width": 100}': "width: Input should be a multiple of 8, not 100",
    '{"prompt": "x", "guidance": NaN}': "guidance: Input should be a finite number",
    '{"prompt": "x", "scheduler": "PNDM"}': "scheduler: Input should be 'DDIM'",
    '{"prompt": "  "}': "prompt: String should have at least 1 character",
    '{"steps": 3}': "prompt: Field required",
    '{"prompt": "\\u0000"}': "holds a zero character",
    '{"prompt": "x", "negative": "\\u0000"}': "holds a zero character",
    '{"prompt": "\\ud800"}': "prompt: Input should be a valid string",
    '["x"]': "is not a JSON object with a prompt",
    "a cat": "is not JSON: Expecting value at character 1",
    "[" * 10_000: "is not JSON that can be read",
    '{"prompt": "x", "seed": ' + "9" * 5000 + "}": "is not JSON that can be read",
}


def test_bad_json_rows_are_all_named_with_their_lines():
    data = "\n".join(['{"prompt": "good"}', *BAD_ROWS]).encode()
    with pytest.raises(BadData) as caught:
        list(parse(data, "p.jsonl", "json"))
    text = str(caught.value)
    assert "\n" not in text
    for number, told in enumerate(BAD_ROWS.values(), start=2):
        assert f"line {number}: {told}" in text


@pytest.mark.parametrize(
    ("name", "data", "form"),
    [
        ("a.jsonl", b"", "json"),
        ("a.txt", b'{"prompt": 1}', "text"),
        ("a.b/prompts", b'\xef\xbb\xbf\n {"prompt": 1}', "json"),
        ("", b"{red, blue} cat", "text"),
        ("", b'{ "prompt": "x"}', "json"),
    ],
)
def test_the_form_of_a_file_is_its_names_or_its_first_letters(name, data, form):
    assert form_of(name, data) == form


def test_a_selection_names_lines_ranges_and_single_pictures():
    chosen = selection("17, 40-42,50.3")
    found = [
        (line, image) for line in range(1, 60) for image in range(4) if chosen.wants(line, image)
    ]
    lines = [(line, image) for line in (17, 40, 41, 42) for image in range(4)]
    assert found == [*lines, (50, 3)]
    assert sum(chosen.count(line, 4) for line in range(1, 60)) == len(found)
    assert chosen.missing([(17, 4), (41, 4), (50, 3)]) == ["50.3"]
    assert selection("1-2,9").missing([(3, 1), (9, 1)]) == ["1-2"]
    assert selection(None) == Selection()
    assert selection(None).wants(5, 5)


@pytest.mark.parametrize("text", ["", "x", "3-2", "1,,2", "1-", "-3", "1.2.3", "1-2.3"])
def test_a_bad_selection_is_refused(text):
    with pytest.raises(BadSpec, match="only: "):
        selection(text)


def test_a_line_number_is_given_once() -> None:
    # The second would overwrite the first's picture.
    rows = (PromptRow(line=1, prompt="a cat"), PromptRow(line=1, prompt="a dog"))
    with pytest.raises(ValidationError, match="line 1 is given 2 times"):
        InferSpec(prompts=rows)
