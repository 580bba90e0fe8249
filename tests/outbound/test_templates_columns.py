"""Both ways of rendering rows give what a naive reading gives: random templates and random batches (40 §6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openaudience.outbound.model import Batch, Element, Lists
from openaudience.outbound.template_columns import Columns
from openaudience.outbound.template_parts import known_of_run, settle
from openaudience.outbound.template_rows import render_rows
from openaudience.outbound.templates import compile_format, default_format
from outbound.naive_templates import naive_rows
from outbound.template_account import RUN

IDS = st.sampled_from([b"", b"a", b"crm-1", "é€".encode(), b"7C9D1A40-0B5E-4A57-9C1F-2E66D0B3A915"])
SEPARATORS = st.sampled_from(["", ";separator=COMMA", '; separator=", "', ";separator=ASCII_SOH"])
LISTS = st.sampled_from(["SEGMENT_LIST", "REMOVED_SEGMENT_LIST", "TRAIT_LIST"])
SCALARS = st.sampled_from(["DP_UUID", "UUID", "MCID", "SYNC_MODE", "PIDALIAS", "OUTPUT_ATTRIBUTE_TYPE"])


def bodies(fields: Sequence[str]) -> st.SearchStrategy[str]:
    """Bodies of iterators whose text is the same in every row."""
    pieces = [*(f"<x.{name}>" for name in fields), "|", "{", "é", "<ORDER_ID>", "<CLOSE_CURLY_BRACKET>"]
    some = st.lists(st.sampled_from(pieces), max_size=4).map("".join)
    choices = st.tuples(st.sampled_from(fields), some, some)
    return st.one_of(some, choices.map(lambda one: f"<if(x.{one[0]} && !PIDALIAS)>{one[1]}<else>{one[2]}<endif>"))


def timed(bodies: st.SearchStrategy[str], fields: Sequence[str]) -> st.SearchStrategy[str]:
    """Bodies with times in them."""
    return st.lists(st.one_of(bodies, st.sampled_from([f"<x.{name}>" for name in fields])), max_size=4).map("".join)


SEGMENT_BODIES = timed(bodies(["sid", "alias", "type", "csegid"]), ["lastUpdateTime", "lastRealizationTime"])
TRAIT_BODIES = timed(bodies(["traitId", "type"]), ["lastRealized"])


@st.composite
def listings(draw: st.DrawFn) -> str:
    name = draw(LISTS)
    body = draw(TRAIT_BODIES if name == "TRAIT_LIST" else SEGMENT_BODIES)
    loop = f":{{x|{body}}}" if draw(st.booleans()) else ""
    return f"<{name}{loop}{draw(SEPARATORS)}>"


CONDITIONS = st.recursive(
    st.one_of(LISTS, SCALARS),
    lambda inner: st.one_of(
        inner.map(lambda one: f"!({one})"),
        st.lists(inner, min_size=2, max_size=3).map(lambda tests: f"({' || '.join(tests)})"),
        st.lists(inner, min_size=2, max_size=3).map(lambda tests: f"({' && '.join(tests)})"),
    ),
    max_leaves=5,
)
SIMPLE = st.one_of(st.sampled_from([" ", "x", "\n", "<TAB>", "é"]), SCALARS.map(lambda name: f"<{name}>"), listings())
TEMPLATES = st.recursive(
    st.lists(SIMPLE, min_size=1, max_size=5).map("".join),
    lambda inner: st.tuples(CONDITIONS, inner, inner, inner).map(
        lambda one: f"{one[1]}<if({one[0]})>{one[2]}<else>{one[3]}<endif>"
    ),
    max_leaves=6,
)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    count = draw(st.integers(0, 6))
    aliases = st.sampled_from(["", "gold", "ü", "3100"])
    element = st.builds(Element, st.integers(1, 9), aliases, st.sampled_from([None, 7]), st.booleans())
    segments, traits = (draw(st.lists(element, min_size=1, max_size=4)) for _ in range(2))

    def lists(size: int) -> Lists | None:
        rows = draw(
            st.lists(st.lists(st.integers(0, size - 1), max_size=4, unique=True), min_size=count, max_size=count)
        )
        unused = draw(st.integers(0, 2))  # before the first row, as in a slice of longer lists
        items = [0] * unused + [item for row in rows for item in sorted(row)]
        offsets = np.cumsum([unused, *map(len, rows)], dtype=np.int64)
        moments = st.sampled_from([0, 9, 10, 1709971200000, 2**63 - 1])
        updated, realized = (np.array([draw(moments) for _ in items], np.int64) for _ in range(2))
        return None if draw(st.integers(0, 9)) == 0 else Lists(offsets, np.array(items, np.int32), updated, realized)

    def ids() -> list[bytes]:
        return draw(st.lists(IDS, min_size=count, max_size=count))

    return Batch(
        count,
        ids=ids(),
        uuids=ids(),
        mcids=ids(),
        segments=lists(len(segments)),
        removed=lists(len(segments)),
        traits=lists(len(traits)),
        segment_table=segments,
        trait_table=traits,
    )


@settings(max_examples=200, deadline=None)
@given(TEMPLATES, st.lists(batches(), min_size=1, max_size=3), st.sampled_from(["", "acct"]))
@pytest.mark.rule("OB-78", "OB-80", "OB-82", "OB-83")
def test_both_ways_give_what_a_naive_reading_gives(row: str, given_batches: list[Batch], alias: str) -> None:
    run = replace(RUN, pid_alias=alias)
    templates = compile_format(replace(default_format("S2S"), row=row))
    settled = settle(templates._row, known_of_run(run))
    columns = Columns.of(settled)
    assert columns is not None
    for batch in given_batches:
        by_rows = render_rows(settled, batch)
        by_columns = columns.render(batch)
        assert by_rows.data == naive_rows(row, run, batch)
        assert by_columns.data == by_rows.data
        assert by_columns.ends.tolist() == by_rows.ends.tolist()
        as_chosen = templates.rows(run, batch)
        assert as_chosen.data == by_rows.data


@settings(max_examples=100, deadline=None)
@given(listings(), CONDITIONS, SIMPLE, batches())
@pytest.mark.rule("OB-82", "OB-83")
def test_rows_in_iterators_give_what_a_naive_reading_gives(inner: str, test: str, simple: str, batch: Batch) -> None:
    row = f"<SEGMENT_LIST:{{y|<if({test} && y.alias)><y.sid>{simple}<else>{inner}<endif>}};separator=COMMA>"
    rendered = compile_format(replace(default_format("S2S"), row=row)).rows(RUN, batch)
    assert rendered.data == naive_rows(row, RUN, batch)


@pytest.mark.rule("OB-105")
def test_texts_follow_the_table_of_the_batch_and_the_run() -> None:
    templates = compile_format(replace(default_format("S2S"), row="<SEGMENT_LIST:{s|<s.alias>-<ORDER_ID>}>"))

    def text(alias: str, order: int) -> bytes:
        one = Lists(np.array([0, 1], np.int64), np.array([0], np.int32))
        batch = Batch(1, segments=one, segment_table=(Element(1, alias),))
        return templates.rows(replace(RUN, order_id=order), batch).data

    assert [text("a", 1), text("b", 1), text("b", 2), text("a", 1)] == [b"a-1\n", b"b-1\n", b"b-2\n", b"a-1\n"]


def test_a_row_of_a_million_bytes() -> None:
    many = 200_000
    lists = Lists(np.array([0, many, many], np.int64), np.arange(many, dtype=np.int32))
    table = [Element(sid, "") for sid in range(many)]
    batch = Batch(2, ids=[b"a", b"b"], segments=lists, segment_table=table)
    rendered = compile_format(default_format("S2S")).rows(RUN, batch)
    first = f"a {','.join(map(str, range(many)))} \n".encode()
    assert rendered.data == first + b"b  \n"
    assert rendered.ends.tolist() == [len(first), len(first) + 4]
