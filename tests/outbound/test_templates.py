"""The template language: golden cases, refusals with positions, warnings, what a template needs (40 §6, §7)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openaudience.errors import TemplateError
from openaudience.outbound.filesets import FileSet
from openaudience.outbound.model import Batch, FileFormat, Rendered
from openaudience.outbound.template_columns import Columns
from openaudience.outbound.template_grammar import MAX_DEPTH
from openaudience.outbound.template_parts import known_of_run, settle
from openaudience.outbound.template_rows import render_rows
from openaudience.outbound.templates import Templates, check_format, compile_format, default_format
from outbound.template_account import RUN, Case, batch, blocks, cases

CASES = cases()


def marked(rule: str, value: Any, name: str) -> Any:
    return pytest.param(value, id=name, marks=pytest.mark.rule(rule))


def golden(kind: str) -> list[Any]:
    return [marked(case.rule, case, f"{case.rule}-{number}") for number, case in enumerate(CASES) if case.kind == kind]


def row_format(row: str) -> FileFormat:
    return replace(default_format("S2S"), row=row)


def lines(rendered: Rendered) -> list[str]:
    """The rows without their LF."""
    starts = [0, *rendered.ends.tolist()]
    assert starts[-1] == len(rendered.data)
    rows = [rendered.data[start:end] for start, end in pairwise(starts)]
    assert all(row.endswith(b"\n") for row in rows)
    return [row[:-1].decode() for row in rows]


@pytest.mark.parametrize("case", golden("name"))
def test_name(case: Case, tmp_path: Path) -> None:
    templates = compile_format(case.format)
    files = FileSet(tmp_path / "run", case.format, lambda split: templates.file_name(case.run, split), b"")
    assert files.file_name(case.part) == case.output


@pytest.mark.rule("OB-340")
@pytest.mark.parametrize("case", golden("header"))
def test_header(case: Case) -> None:
    assert compile_format(case.format).header(case.run).decode() == case.output


@pytest.mark.rule("OB-78", "OB-79", "OB-80", "OB-81", "OB-82", "OB-83", "OB-84", "OB-87", "OB-114")
@pytest.mark.rule("OB-90", "OB-91", "OB-92", "OB-93", "OB-94", "OB-95", "OB-96", "OB-99", "OB-101", "OB-102", "OB-103")
@pytest.mark.rule("OB-104", "OB-105", "OB-106", "OB-107", "OB-108", "OB-109", "OB-110", "OB-337", "OB-338", "OB-339")
@pytest.mark.parametrize("case", golden("row"))
def test_row(case: Case) -> None:
    templates = compile_format(case.format)
    assert templates.needs.one_row_per_user == (case.settings.get("per") == "user")
    users, rows = batch(templates.needs, case.run)
    assert lines(templates.rows(case.run, rows))[users.index(case.user)] == case.output
    assert same_by_rows(templates, rows, case)


def same_by_rows(templates: Templates, rows: Batch, case: Case) -> bool:
    """Whether rendering row by row gives the same, whichever way was taken before."""
    slowly = render_rows(settle(templates._row, known_of_run(case.run)), rows)
    quickly = templates.rows(case.run, rows)
    return slowly.data == quickly.data and slowly.ends.tolist() == quickly.ends.tolist()


def test_all_cases_are_there() -> None:
    assert {case.rule for case in CASES} >= {f"OB-{number}" for number in range(117, 176)}


@pytest.mark.rule("OB-86")
def test_each_row_ends_with_one_line_feed_and_a_header_with_none() -> None:
    templates = compile_format(replace(row_format("<DP_UUID>"), header="a\n<ORDER_ID>"))
    _, rows = batch(templates.needs, RUN)
    assert templates.rows(RUN, rows).data == b"crm-A9\ncrm-B4\ncrm-C7\ncrm-D1\n"
    assert templates.header(RUN) == b"a\n7301"
    assert compile_format(row_format("x")).header(RUN) == b""
    nothing = templates.rows(RUN, Batch(0, ids=[]))
    assert (nothing.data, nothing.ends.tolist()) == (b"", [])


@pytest.mark.rule("OB-115")
def test_default_rows_of_bulk_destinations() -> None:
    for kind, wanted in {
        "BULK_TRAIT": "crm-A9 8001,8102",
        "BULK_ID": "38400217650193847261905538274610293847\tcrm-A9",
    }.items():
        templates = compile_format(default_format(kind))
        assert lines(templates.rows(RUN, batch(templates.needs, RUN)[1]))[0] == wanted
        assert templates.header(RUN) == b""
        assert not templates.needs.one_row_per_user


@pytest.mark.rule("OB-116")
def test_a_default_row_has_three_fields_whatever_is_empty() -> None:
    templates = compile_format(default_format("BULK_SEGMENT"))
    _, rows = batch(templates.needs, RUN)
    alone = replace(rows, segments=None)
    for some in (rows, alone, replace(rows, removed=None), replace(alone, removed=None)):
        for line in lines(templates.rows(RUN, some)):
            assert line.count(" ") == 2
            assert line.split(" ")[0].startswith("crm-")


@pytest.mark.rule("OB-106")
def test_lists_that_an_export_has_none_of_are_empty() -> None:
    row = '<DP_UUID><if(SEGMENT_LIST)>!<endif>|<SEGMENT_LIST:{s|<s.lastUpdateTime>}>|<TRAIT_LIST;separator=",">'
    assert compile_format(row_format(row)).rows(RUN, Batch(1, ids=[b"a"])).data == b"a||\n"


@pytest.mark.rule("OB-113")
def test_the_default_name_leaves_no_gap_for_a_missing_alias() -> None:
    name = compile_format(default_format("S2S")).file_name
    assert name(replace(RUN, pid_alias=""), "") == "s3_7301_52011_iter_1710003906789.sync"
    assert name(RUN, "002") == "s3_7301_52011_acct-77_iter_1710003906789002.sync"


@pytest.mark.rule("OB-334", "OB-341")
def test_times_have_thirteen_digits_unless_set_to_ten() -> None:
    format = replace(row_format('<SEGMENT_LIST:{s|<s.lastUpdateTime>};separator=","> <TIMESTAMP>'), timestamp_digits=10)
    templates = compile_format(format)
    users, rows = batch(templates.needs, RUN)
    line = lines(templates.rows(RUN, rows))[users.index("U2")]
    assert line == "1709971200000 1710003906"


@pytest.mark.rule("OB-335")
def test_the_text_of_the_server_type_is_that_of_the_run() -> None:
    templates = compile_format(row_format("<SYNC_TYPE>"))
    assert templates.rows(replace(RUN, sync_type="S3"), Batch(1)).data == b"S3\n"
    assert templates.rows(RUN, Batch(1)).data == b"s3\n"


NEEDS = """
<DP_UUID> → dpuuid
x → one_row_per_user
<UUID><if(MCID)>a<endif> → uuid mcid one_row_per_user
<DP_UUID><if(DP_UUID_LIST)>a<endif> → dpuuid id_list one_row_per_user
<if(!DP_UUID)>a<endif> → dpuuid
<DP_UUID><SEGMENT_LIST:{s|<s.lastUpdateTime>}> → dpuuid segments segment_times
<DP_UUID><REMOVED_SEGMENT_LIST:{s|<if(s.lastRealizationTime)>a<endif>}> → dpuuid removed realized_times
<DP_UUID><TRAIT_LIST:{t|<SEGMENT_LIST:{s|<t.lastRealized>}>}> → dpuuid segments traits trait_times
<DP_UUID><TRAIT_LIST:{s|<s.sid><UUID>}> → dpuuid traits uuid
"""


@pytest.mark.rule("OB-87")
@pytest.mark.parametrize("line", NEEDS.strip().splitlines())
def test_needs(line: str) -> None:
    row, _, wanted = line.partition(" → ")
    needs = compile_format(row_format(row)).needs
    assert {name for name in needs.__slots__ if getattr(needs, name)} == set(wanted.split())


@pytest.mark.rule("OB-107")
def test_needs_of_other_ids_are_those_of_all_tags_together() -> None:
    one = '<DPUUIDS; format="dpids=3,1|maxMappings=2">'
    two = '<DPUUIDS; format="dpids=1,2|maxMappings=5">'
    both = '<if(MCID)><DPUUIDS; format="dpids=2">' + two + "<endif>" + one
    assert compile_format(row_format(one + two)).needs.dpuuids == ((3, 2), (1, 5), (2, 5))
    assert compile_format(row_format(both)).needs.dpuuids == ((2, 0), (1, 5), (3, 2))
    assert compile_format(row_format(two + '<DPUUIDS; format="dpids=2">')).needs.dpuuids == ((1, 5), (2, 0))
    rows = Batch(1, others={1: [[b"a", b"b", b"c"]], 2: [[]], 3: [['"é\\'.encode()]]})
    written = compile_format(row_format(one)).rows(RUN, rows).data.decode()
    assert written == '[["3","\\"é\\\\"],["1","a"],["1","b"]]\n'


@pytest.mark.parametrize(
    ("row", "lacking"),
    [
        ("<DP_UUID>", Batch(2, ids=[b"a"])),
        ("<UUID>", Batch(2)),
        ("<if(MCID)>a<endif>", Batch(2)),
        ("<DP_UUID_LIST>", Batch(2)),
        ('<DPUUIDS;format="dpids=1">', Batch(2)),
    ],
)
def test_a_batch_without_what_is_needed_is_refused(row: str, lacking: Batch) -> None:
    with pytest.raises(ValueError, match="2 rows"):
        compile_format(row_format(row)).rows(RUN, lacking)


@pytest.mark.parametrize("row", ['<SEGMENT_LIST;separator=",">', "<SEGMENT_LIST:{s|<DP_UUID><s.sid>}>"])
def test_lists_that_do_not_fit_are_refused(row: str) -> None:
    templates = compile_format(row_format(row))
    _, rows = batch(replace(templates.needs, dpuuid=True, one_row_per_user=False), RUN)
    assert rows.segments is not None
    for wrong in (
        replace(rows.segments, items=rows.segments.items + 3),
        replace(rows.segments, items=rows.segments.items - 3),
        replace(rows.segments, offsets=rows.segments.offsets[:-1]),
        replace(rows.segments, offsets=rows.segments.offsets + 1),
        replace(rows.segments, offsets=rows.segments.offsets[::-1]),
    ):
        with pytest.raises(ValueError, match="segments"):
            templates.rows(RUN, replace(rows, segments=wrong))


@pytest.mark.parametrize("field", ["lastUpdateTime", "lastRealizationTime"])
def test_times_that_are_missing_are_never_made_up(field: str) -> None:
    templates = compile_format(row_format(f"<DP_UUID><SEGMENT_LIST:{{s|<s.{field}>}}>"))
    _, rows = batch(replace(templates.needs, segment_times=False, realized_times=False), RUN)
    with pytest.raises(ValueError, match="times"):
        templates.rows(RUN, rows)


def refusals() -> list[Any]:
    found = []
    for number, (head, reason, *template) in enumerate(blocks("template_errors.txt")):
        rule, field, position = head.split()
        found.append(marked(rule, (field, int(position), reason, "\n".join(template)), f"{rule}-{number}"))
    return found


def document(field: str, template: str) -> dict[str, Any]:
    return {"name": "f", "fileName": "a", "row": "b", field: template}


def format_of(field: str, template: str) -> FileFormat:
    texts = document(field, template)
    return FileFormat(texts["fileName"], texts["row"], texts.get("header", ""))


@pytest.mark.rule("OB-88")
@pytest.mark.parametrize("case", refusals())
def test_refusal(case: tuple[str, int, str, str]) -> None:
    field, position, reason, template = case
    check = check_format(document(field, template))
    assert check.mistakes
    assert check.mistakes[0][:2] == (field, position)
    assert reason in check.mistakes[0][2]
    with pytest.raises(TemplateError) as caught:
        compile_format(format_of(field, template))
    assert (caught.value.code, caught.value.position) == ("E_TEMPLATE", position)
    assert caught.value.message == f"{field}: {check.mistakes[0][2]}"


@pytest.mark.rule("OB-88")
def test_all_mistakes_are_named_in_the_order_of_the_text() -> None:
    row = '<A><SEGMENT_LIST:{s|<s.x>}; separator=PIPE><UUID; separator=","><if(B || !UUID.c)><C><endif>'
    check = check_format({"fileName": "<D>", "header": "<E", "row": row})
    assert [note[:2] for note in check.mistakes] == [
        ("fileName", 1),
        ("header", 0),
        *[("row", row.index(part)) for part in ("A", "s.x", "PIPE", 'separator=","', "B ", "UUID.c", "C>")],
    ]


@pytest.mark.rule("OB-88")
def test_file_names_and_rows_are_required() -> None:
    assert [note[0] for note in check_format({"header": "x"}).mistakes] == ["fileName", "row"]
    assert check_format(document("header", "")).mistakes == []


@pytest.mark.rule("OB-88")
def test_depth_has_a_limit() -> None:
    def nested(times: int) -> str:
        return "<if(MCID)>" * times + "x" + "<endif>" * times

    assert check_format(document("row", nested(MAX_DEPTH - 1))).mistakes == []
    for deep in (nested(5000), f"<if({'(' * 5000}MCID{')' * 5000})>x<endif>", "<DP_UUID_LIST:{a|" * 5000):
        assert "deeper" in check_format(document("row", deep)).mistakes[0][2]
    templates = compile_format(row_format(f"<if({'!' * 5001}MCID)>x<endif>"))
    assert templates.rows(RUN, Batch(2, mcids=[b"", b"1"])).data == b"x\n\n"


def warned() -> list[Any]:
    found = []
    for number, (head, *rest) in enumerate(blocks("template_warnings.txt")):
        rule, field, *positions = head.split()
        template, *texts = rest
        notes = [(field, int(position), text) for position, text in zip(positions, texts, strict=True)]
        found.append(marked(rule, (field, template, notes), f"{rule}-{number}"))
    return found


@pytest.mark.parametrize("case", warned())
def test_warning(case: tuple[str, str, list[tuple[str, int, str]]]) -> None:
    field, template, notes = case
    check = check_format(document(field, template))
    assert check.mistakes == []
    assert [note[:2] for note in check.warnings] == [note[:2] for note in notes]
    assert all(said in note[2] for note, (_, _, said) in zip(check.warnings, notes, strict=True))


@pytest.mark.rule("OB-89", "OB-184")
def test_default_formats_give_no_warning_and_huge_parts_do() -> None:
    for kind in ("S2S", "BULK_SEGMENT", "BULK_TRAIT", "BULK_ID"):
        format = default_format(kind)
        saved = {"fileName": format.file_name, "row": format.row, "maxFileSize": 10**10}
        assert check_format(saved).mistakes == check_format(saved).warnings == []
        assert [note[0] for note in check_format({**saved, "maxFileSize": 10**10 + 1}).warnings] == ["maxFileSize"]


SIGNS = (
    '< > <if( )> <else> <endif> { } : ; , | || && ! ( ) " \\ = x UUID SEGMENT_LIST SEGMENT_LIST:{s| s.sid separator '
    "format TAB SPLITNUM TIMESTAMP DPUUIDS dpids=1 . (A) é \ud800"
)
PIECES = [*SIGNS.split(), " ", "\n"]


@given(
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.sampled_from(["fileName", "header", "row"]),
)
def test_any_text_is_either_a_template_or_refused_within_it(text: str, field: str) -> None:
    check = check_format(document(field, text))
    for name, position, reason in (*check.mistakes, *check.warnings):
        assert name == field
        assert 0 <= position <= len(text)
        assert reason
    format = format_of(field, text)
    if check.mistakes:
        with pytest.raises(TemplateError):
            compile_format(format)
    else:
        templates = compile_format(format)
        templates.file_name(RUN, "001")
        templates.header(RUN)
        templates.rows(RUN, batch(templates.needs, RUN)[1])


def test_simple_templates_are_rendered_by_columns() -> None:
    simple = {
        "OB-172",
        "OB-143",
        "OB-151",
        "OB-152",
        "OB-153",
        "OB-161",
        "OB-160",
        "OB-148",
        "OB-158",
        "OB-135",
        "OB-167",
    }
    by_columns = {
        case.rule
        for case in CASES
        if case.kind == "row" and Columns.of(settle(compile_format(case.format)._row, known_of_run(case.run)))
    }
    assert simple <= by_columns
    assert not by_columns & {"OB-162", "OB-136", "OB-103"}
