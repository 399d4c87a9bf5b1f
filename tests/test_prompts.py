from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobs.errors import BadData
from jobs.prompts import from_json_lines, parse, to_json_lines
from jobs.specs import PromptRow

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
            parse(data, "p.txt")
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
        (b"one\ntwo\0\n", "p.txt: is not text: line 2 holds a zero byte (at byte 7)"),
        (b"\x89PNG\r\n\x1a\n\0\0", "p.txt: is not text"),
        ("a cat".encode("utf-16"), "p.txt: is UTF-16 text, not UTF-8"),
        (b"one\ncaf\xe9\nthree\nna\xefve", "line 2, byte 4 (0xe9); line 4, byte 3 (0xef)"),
        (b"\xe9\n" * 12, "and 4 more"),
    ],
)
def test_a_bad_file_is_told_by_name_and_place(data, told):
    with pytest.raises(BadData) as caught:
        parse(data, "p.txt")
    assert told in str(caught.value)
    assert str(caught.value).startswith("p.txt: ")
    assert "\n" not in str(caught.value)


def test_bad_rows_are_all_named():
    data = b'{"line": 1, "prompt": "a"}\nnonsense\n{"line": 0, "prompt": ""}\n'
    with pytest.raises(BadData) as caught:
        from_json_lines(data, "p.jsonl")
    assert "line 2 (not JSON)" in str(caught.value)
    assert "line 3 (line: " in str(caught.value)
