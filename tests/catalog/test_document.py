"""Reading the text of workspace files: places, odd inputs, no crash (OP-31, OP-67)."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openaudience.catalog.document import parse
from openaudience.errors import WorkspaceError


@pytest.mark.rule("OP-31")
def test_every_value_knows_its_place() -> None:
    root = parse("partners:\n  - pid: 1\n    name: 'it''s'\n", "f")
    partner = root.value["partners"].value[0]
    assert (partner.line, partner.column) == (2, 5)
    assert (partner.value["name"].line, partner.value["name"].column) == (3, 11)
    assert partner.value["name"].value == "it's"
    assert (partner.keys["name"].line, partner.keys["name"].column) == (3, 5)


@pytest.mark.rule("OP-30")
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("k: 2026-01-01", "2026-01-01"),
        ("k: '7'", "7"),
        ("k: 7", 7),
        ("k: off", False),
        ("k: null", None),
        ("k: 1.5", 1.5),
        ("k: 1e3", "1e3"),
        ('{"k": 1e3}', 1000.0),
        ('{\n\t"k":\t"a\\/b"}', "a/b"),
        ('{"k": "\\ud83d\\ude00"}', "\U0001f600"),
        ("\ufeffk: 1", 1),
        ("k: 0x1F", "0x1F"),
        ("k: 12:30:45", "12:30:45"),
    ],
)
def test_values(text: str, value: object) -> None:
    assert parse(text, "f").value["k"].value == value


@pytest.mark.rule("OP-31")
@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "- " * 50_000,
        "k: &a [*a]",
        "k: *b",
        "\x00",
        "k: \x07",
        "? [1]\n: 2",
        "---\na\n---\nb",
        "'",
        '{"k": "\\ud83d"}',
    ],
)
def test_what_cannot_be_read_is_a_mistake_with_a_place(text: str) -> None:
    with pytest.raises(WorkspaceError) as caught:
        parse(text, "f")
    assert all(mistake.line >= 1 and mistake.column >= 1 for mistake in caught.value.mistakes)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab:{}[],-#&*!|>'\"%@`?\n\t \\u0d8\ud83d\x85"), max_size=40))
def test_no_text_crashes_the_reader(text: str) -> None:
    with suppress(WorkspaceError):
        assert parse(text, "f").line >= 1
