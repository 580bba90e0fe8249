"""File names: the grammar, and who may send what (10 §3)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openaudience.errors import FileRejected
from openaudience.inbound.filenames import FileName, check_name, named_sources, nearest_name, parse_name
from openaudience.vocabulary import GLOBAL_SOURCES, DataSource, IdKind

HERE = Path(__file__).parent

SOURCES = {
    10: DataSource(10, 1, "own"),
    11: DataSource(11, 1, "people", id_type="CROSS_DEVICE"),
    12: DataSource(12, 1, "e-mails", id_type="CROSS_DEVICE", hashed_emails=True),
    13: DataSource(13, 1, "old", active=False),
    14: DataSource(14, 1, "uuids", use_aam_id=True),
    15: DataSource(15, 1, "ecids", ecid_version=1),
    20: DataSource(20, 2, "open"),
    21: DataSource(21, 2, "closed"),
    22: DataSource(22, 2, "their people", id_type="CROSS_DEVICE"),
} | {dpid: DataSource(dpid, 0, name) for dpid, name in GLOBAL_SOURCES.items()}


def cases(file: str) -> list[object]:
    found: list[object] = []
    for line in (HERE / file).read_text().splitlines():
        if line and not line.startswith("#"):
            rules, name, verdict = line.split(" | ", 2)
            found.append(pytest.param(name, verdict, id=name, marks=pytest.mark.rule(*rules.split())))
    return found


def described(name: FileName) -> str:
    kind = "odc" if name.odc else name.kind
    target = "-" if name.target_dpid is None else name.target_dpid
    split = "-" if name.split is None else name.split
    return (
        f"ok {kind} id={name.id_dpid} target={target} ts={name.timestamp} {name.mode} "
        f"split={split} ext={name.ext or '-'}"
    )


@pytest.mark.parametrize(("name", "verdict"), cases("names.txt"))
def test_grammar(name: str, verdict: str) -> None:
    if verdict.startswith("ok"):
        assert described(parse_name(name)) == verdict
        return
    code, words, nearest = verdict.split(" ~ ")
    with pytest.raises(FileRejected) as caught:
        parse_name(name)
    assert caught.value.code == code
    assert words in caught.value.text
    assert caught.value.fix.startswith(f"Nearest valid form: {nearest}")


@pytest.mark.parametrize(("name", "verdict"), cases("places.txt"))
def test_places(name: str, verdict: str) -> None:
    parsed = parse_name(name)
    if verdict == "ok":
        assert check_name(parsed, SOURCES, 1, {20})
        return
    with pytest.raises(FileRejected) as caught:
        check_name(parsed, SOURCES, 1, {20})
    assert caught.value.code == verdict
    assert name in caught.value.text
    assert caught.value.fix


def refusal(text: str) -> FileRejected | None:
    try:
        parse_name(text)
    except FileRejected as error:
        return error
    return None


@pytest.mark.rule("IN-18")
@given(st.text(max_size=60))
def test_any_text_is_judged(text: str) -> None:
    error = refusal(text)
    assert error is None or error.code in ("name_syntax", "name_milliseconds", "name_extension")
    assert error is None or (error.text and error.fix)


@given(st.from_regex(r"(ftp_dpm_|adobe_id_)[0-9_]{1,40}\.(sync|overwrite)[.0-9gzp]{0,9}", fullmatch=True))
def test_nearly_names_are_judged(text: str) -> None:
    named_sources(text)
    error = refusal(text)
    assert error is None or error.fix.startswith("Nearest valid form: ")


@pytest.mark.rule("IN-18")
def test_huge_names() -> None:
    for text in ("ftp_dpm_" + "9" * 5_000 + ".sync", "ftp_dpm_" + "9" * 900 + "_1366545717.sync", "a" * 100_000):
        with pytest.raises(FileRejected) as caught:
            parse_name(text)
        assert caught.value.code == "name_syntax"
        assert len(caught.value.text) < 2_000


@pytest.mark.rule("IN-11")
def test_nine_digits_warn() -> None:
    assert [warning.code for warning in parse_name("ftp_dpm_478_136654571.sync").warnings] == ["timestamp_9_digits"]
    assert parse_name("ftp_dpm_478_1366545717.sync").warnings == ()


@pytest.mark.rule("IN-08", "IN-14")
def test_order_and_batch() -> None:
    names = [
        "ftp_dpm_5_1366545718.sync",
        "ftp_dpm_5_1366545717.sync.10.gz",
        "ftp_dpm_5_1366545717.sync.2",
        "ftp_dpm_5_1366545717.sync.002.gz",
        "ftp_dpm_5_136654571.sync",
    ]
    parsed = sorted((parse_name(name) for name in names), key=lambda name: name.order)
    assert [name.text for name in parsed] == [names[4], names[3], names[2], names[1], names[0]]
    assert {name.batch for name in parsed[1:4]} == {"ftp_dpm_5_1366545717.sync"}


@pytest.mark.rule("IN-12")
def test_missing_target_offers_an_own_source() -> None:
    with pytest.raises(FileRejected) as caught:
        check_name(parse_name("ftp_dpm_20915_1772445600.sync"), SOURCES, 1, ())
    assert "ftp_dpm_20915_10_1772445600.sync" in caught.value.fix
    with pytest.raises(FileRejected) as caught:
        check_name(parse_name("ftp_dpm_20915_1772445600.sync"), None, 0, ())
    assert "ftp_dpm_20915_<TARGET_DPID>_1772445600.sync" in caught.value.fix


@pytest.mark.rule("IN-35")
def test_kind_of_column_one() -> None:
    kinds = {0: IdKind.UUID, 10: IdKind.COOKIE, 11: IdKind.CROSS_DEVICE, 14: IdKind.UUID, 15: IdKind.ECID}
    for dpid, kind in kinds.items():
        layout = check_name(parse_name(f"ftp_dpm_{dpid}_10_1366545717.sync"), SOURCES, 1, ())
        assert (layout.form, [(column.dpid, column.kind) for column in layout.columns]) == ("data", [(dpid, kind)])
    layout = check_name(parse_name("ftp_dpm_odc_10_1366545717.overwrite"), SOURCES, 1, ())
    assert (layout.form, layout.overwrite) == ("odc", True)
    layout = check_name(parse_name("adobe_id_0_20914_15_11_1366545717.sync"), SOURCES, 1, ())
    assert [column.kind for column in layout.columns] == [
        IdKind.UUID,
        IdKind.DAID,
        IdKind.ECID,
        IdKind.CROSS_DEVICE,
    ]
    offline = check_name(parse_name("adobe_id_0_20914_555_1366545717.sync"), None, 0, ())
    assert [column.kind for column in offline.columns] == [IdKind.UUID, IdKind.DAID, IdKind.COOKIE]


@pytest.mark.rule("IN-36")
def test_pii_guard_of_a_layout() -> None:
    sources = SOURCES | {
        10: DataSource(10, 1, "own", pii_guard="off"),
        11: DataSource(11, 1, "people", id_type="CROSS_DEVICE", pii_guard="ids_and_values"),
    }
    off = check_name(parse_name("ftp_dpm_10_1366545717.sync"), sources, 1, ())
    assert (off.columns[0].pii_guard, off.pii_values) == (False, False)
    mixed = check_name(parse_name("ftp_dpm_10_11_1366545717.sync"), sources, 1, ())
    assert (mixed.columns[0].pii_guard, mixed.pii_values) == (False, True)
    uuids = check_name(parse_name("ftp_dpm_0_10_1366545717.sync"), sources, 1, ())
    assert (uuids.columns[0].pii_guard, uuids.pii_values) == (True, False)


def test_sources_of_wrong_names() -> None:
    assert named_sources("ftp_dpm_478_567_1366545717000.sync") == (478, 567)
    assert named_sources("ftp_dpm_478_1366545717.sync.zip") == (478, 478)
    assert named_sources("ftp_dpm_20914_1366545717.sync") == (20914, None)
    assert named_sources("adobe_id_123_1454442149.sync") == (123, None)
    assert named_sources("ftp_dpm_1366545717.sync") == (None, None)
    assert named_sources("report.txt") == (None, None)


def test_nearest_name() -> None:
    nearest = nearest_name("FTP_DPM_478_1366545717000.SYNC.gz.2")
    assert nearest is not None
    assert nearest.text == "ftp_dpm_478_1366545717.sync.2.gz"
    assert nearest_name("ftp_dpm_478.sync") is None
