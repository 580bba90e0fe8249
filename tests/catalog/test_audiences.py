"""What evaluation and exports are told about segments, merge rules and destinations, and what the API shows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine

from catalog.desk import DAY, EXAMPLE, NOW, Desk
from openaudience.catalog.audience_documents import destination_documents, segment_documents
from openaudience.catalog.base import open_engine
from openaudience.catalog.migrate import upgrade
from openaudience.rules.segments import text as canonical

TODAY = NOW.date()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    opened = open_engine(f"sqlite:///{tmp_path / 'catalog.db'}")
    upgrade(opened)
    yield opened
    opened.dispose()


@pytest.fixture
def desk(engine: Engine, tmp_path: Path) -> Desk:
    return Desk(engine, tmp_path)


SEGMENTS = [
    {"sid": 20, "name": "S", "dataSourceId": 10, "segmentRule": "11T", "integrationCode": "code-20"},
    {"sid": 21, "name": "R", "dataSourceId": 10, "segmentRule": "11T", "description": "the rest", "legacyId": 7},
]


def workspace(destination: dict[str, Any] | None = None, **given: Any) -> str:
    document: dict[str, Any] = {
        "pid": 1,
        "name": "acme",
        "dataSources": [{"dataSourceId": 10, "name": "CRM"}],
        "traits": [{"sid": 11, "name": "A", "traitType": "ON_BOARDED_TRAIT", "dataSourceId": 10, "description": "a"}],
        "segments": SEGMENTS,
        "destinationServers": [{"serverId": 1, "name": "Here", "type": "LOCAL", "directory": "/out"}],
    }
    if destination is not None:
        fixed = {"destinationType": "S2S", "dataSourceId": 10, "userIdKey": 0, "serverId": 1}
        document["destinations"] = [{"destinationId": 5, "name": "D"} | fixed | destination]
    return yaml.safe_dump({"partners": [document | given]})


def only(**given: Any) -> str:
    return yaml.safe_dump({"partners": [{"pid": 1, "name": "acme"} | given]})


@pytest.mark.rule("QL-701", "QL-702", "QL-703", "QL-704", "QL-705", "QL-706")
def test_segments(desk: Desk) -> None:
    desk.apply(EXAMPLE.read_text())
    audiences = desk.audiences()
    assert {sid: (s.name, s.dpid, s.rule, s.merge_rule, s.active) for sid, s in audiences.segments.items()} == {
        2001: ("Recent buyers", 5001, "901T AND NOT 902T", 8000, True),
        2002: ("Gold with cart", 7007, "950T AND 903T", 8001, True),
    }
    assert {sid: canonical(tree) for sid, tree in audiences.trees().items()} == {
        2001: "901T AND NOT 902T",
        2002: "950T AND 903T",
    }
    assert audiences.merge_rules[8001].sources == (7007,)


@pytest.mark.rule("QL-705", "QL-709", "QL-713", "API-116")
def test_a_paused_segment_is_not_active(desk: Desk) -> None:
    desk.apply(workspace())
    for word, active in (("PAUSED", False), ("active", True), ("inactive", False)):
        desk.apply(only(segments=[{"sid": 20, "status": word}]))
        assert desk.audiences().segments[20].active is active


@pytest.mark.rule("QL-003", "OP-35")
def test_rules_are_kept_as_written_without_the_space_around(desk: Desk) -> None:
    rule = "  11t   and (11T) \n"
    text = workspace(segments=[SEGMENTS[0] | {"segmentRule": rule}])
    desk.apply(text)
    assert desk.audiences().segments[20].rule == "11t   and (11T)"
    assert desk.apply(text) == []


@pytest.mark.rule("QL-802", "QL-805", "QL-806", "QL-807", "QL-808", "QL-707")
@pytest.mark.parametrize(
    ("rule", "column", "code"),
    [
        ("", 0, "segmentRule: must not be empty"),
        ("11T AND", 8, "E_SYNTAX"),
        ("11T AND 99T", 9, "E_UNKNOWN_TRAIT"),
        ("11T AND 20T", 9, "E_UNKNOWN_TRAIT"),
        ("FREQUENCY([11T]) >= 1", 12, "E_RF_TRAIT_TYPE"),
        ("FREQUENCY([12T]) <= 1", 1, "E_NEGATIVE"),
        ("11T OR 12T", 1, "E_TOO_MANY_TRAITS"),
    ],
)
def test_refused_rules_have_a_code_and_a_place(desk: Desk, rule: str, column: int, code: str) -> None:
    if code == "E_TOO_MANY_TRAITS":
        desk.limits = type(desk.limits)(traits_per_segment=1)
    traits = (
        "[{sid: 11, name: A, traitType: ON_BOARDED_TRAIT, dataSourceId: 10},"
        " {sid: 12, name: B, traitType: RULE_BASED_TRAIT, dataSourceId: 10, traitRule: 'a == 1'}]"
    )
    before = "    segments: [{sid: 20, name: S, dataSourceId: 10, segmentRule: "
    head = "partners:\n  - pid: 1\n    name: acme\n    dataSources: [{dataSourceId: 10, name: CRM}]\n"
    (mistake,) = desk.mistakes(f"{head}    traits: {traits}\n{before}'{rule}'}}]\n")
    at = len(before) + 1 + column
    assert mistake.startswith(f"6:{at}: {code}")
    assert desk.exported() == {"partners": []}


@pytest.mark.rule("OB-29", "OB-14", "API-196")
def test_destination_values(desk: Desk) -> None:
    third = {"sid": 22, "name": "Q", "dataSourceId": 10, "segmentRule": "11T"}
    mappings = [{"sid": 20, "traitAlias": "own"}, {"sid": 21}, {"sid": 11, "traitType": "TRAIT"}]
    found = {}
    for number, word in enumerate(("NONE", "SEGMENT_ID", "INTEGRATION_CODE")):
        given = {"destinationId": 50 + number, "name": word, "mappingAutoFiller": word}
        desk.apply(workspace(given | {"mappings": [*mappings, {"sid": 22}]}, segments=[*SEGMENTS, third]))
        found[word] = {m.sid: m.alias for m in desk.audiences().destinations[50 + number].mappings}
    assert list(found.values()) == [{20: "own", 21: "21", 11: "11", 22: "22"}] * 3
    desk.apply(only(segments=[{"sid": 22, "integrationCode": "code-22"}]))
    given = {"destinationId": 60, "name": "IC", "mappingAutoFiller": "IC", "mappings": [{"sid": 20}, {"sid": 21}]}
    desk.apply(workspace(given | {"mappings": [{"sid": 20}, {"sid": 21}, {"sid": 22}]}, segments=[]))
    assert {m.sid: m.alias for m in desk.audiences().destinations[60].mappings} == {
        20: "code-20",
        21: "21",
        22: "code-22",
    }


@pytest.mark.rule("OB-30", "OB-31", "OB-32")
def test_dates_of_mappings(desk: Desk) -> None:
    desk.apply(workspace({"mappings": [{"sid": 20}, {"sid": 21, "startDate": "2026-05-01", "endDate": "2026-05-03"}]}))
    open_, bounded = desk.audiences().destinations[5].mappings
    assert (open_.start, open_.end) == (TODAY, None)
    assert [open_.live(day) for day in (TODAY - DAY, TODAY, date(2999, 1, 1))] == [False, True, True]
    days = [date(2026, 4, 30), date(2026, 5, 1), date(2026, 5, 2), date(2026, 5, 3)]
    assert [bounded.live(day) for day in days] == [False, True, True, False]
    # the day of creation stays, and the dates are shown as they were given
    desk.now += 9 * DAY
    desk.apply(workspace({"mappings": [{"sid": 20, "endDate": "2026-06-01"}, {"sid": 21}]}))
    shown = desk.exported()["partners"][0]["destinations"][0]["mappings"]
    assert [(m["sid"], m["startDate"], m["endDate"]) for m in shown] == [
        (20, "2026-03-02", "2026-06-01"),
        (21, "2026-05-01", "2026-05-03"),
    ]


@pytest.mark.rule("OB-33", "OB-28", "API-196")
def test_a_mapping_made_anew_is_another_one(desk: Desk) -> None:
    desk.apply(workspace({"mappings": [{"sid": 20}, {"sid": 21}]}))
    first = {m.sid: m for m in desk.audiences().destinations[5].mappings}
    assert {m.mapping for m in first.values()} == {1, 2}
    assert {m.since for m in first.values()} == {int(NOW.timestamp())}
    desk.now += DAY
    desk.apply(workspace({"mappings": [{"sid": 21, "traitAlias": "new"}]}), prune=True)
    desk.now += DAY
    desk.apply(workspace({"mappings": [{"sid": 20}]}))
    second = {m.sid: m for m in desk.audiences().destinations[5].mappings}
    assert (second[21].mapping, second[21].since, second[21].alias) == (first[21].mapping, first[21].since, "new")
    assert (second[20].mapping, second[20].since) == (3, int(desk.now.timestamp()))


@pytest.mark.rule("API-196", "OB-28")
def test_numbers_of_mappings_are_unique(desk: Desk) -> None:
    # a number that stands in the file is not given to the mapping before it
    desk.apply(workspace({"mappings": [{"sid": 20}, {"sid": 21, "mappingId": 1}]}))
    assert {m.sid: m.mapping for m in desk.audiences().destinations[5].mappings} == {20: 2, 21: 1}
    other = {"destinationId": 6, "name": "E", "mappings": [{"sid": 20, "mappingId": 2}]}
    (mistake,) = desk.mistakes(workspace(other))
    assert "mappingId: 2 is another mapping; leave it out to be given a number" in mistake
    assert desk.apply(workspace({"mappings": [{"sid": 20, "mappingId": 99}]})) == []


@pytest.mark.rule("OB-10", "OB-13", "OB-15", "OB-17", "OB-18", "OB-19", "OB-20", "OB-21", "OB-22", "OB-23", "API-199")
def test_fields_of_destinations(desk: Desk) -> None:
    desk.apply(workspace({}))
    plain = desk.audiences().destinations[5]
    assert (plain.active, plain.batch, plain.alias, plain.labels) == (True, True, "", frozenset())
    assert (plain.unsegment, plain.accepts_device_ids, plain.sync_type, plain.lookback) == (
        True,
        True,
        "lifetime",
        None,
    )
    assert (plain.incremental, plain.full, plain.iter_content, plain.sample) == (1, None, "changes", 1)
    assert (plain.in_file_sources, plain.server, plain.format, plain.user_id_key, plain.target) == ((), 1, None, 0, 10)
    fields = {
        "status": "INACTIVE",
        "foreignAccountId": "acct",
        "unsegment": False,
        "acceptsDeviceIds": False,
        "syncType": "platform",
        "syncLookback": "30d",
        "incrementalSchedule": "never",
        "fullSchedule": "7d",
        "iterContent": "state",
        "sampleRateDenominator": 8,
        "inFileDataSources": "all_first_party",
        "dataExportLabels": ["pii"],
    }
    desk.apply(workspace(fields))
    full = desk.audiences().destinations[5]
    assert (full.active, full.alias, full.labels) == (False, "acct", frozenset({"PII"}))
    assert (full.unsegment, full.accepts_device_ids, full.sync_type, full.lookback) == (False, False, "platform", 30)
    assert (full.incremental, full.full, full.iter_content, full.sample) == (None, 7, "state", 8)
    assert full.in_file_sources is None


@pytest.mark.rule("OB-05", "OB-06")
def test_destinations_of_browsers_are_not_exported(desk: Desk) -> None:
    desk.apply(EXAMPLE.read_text())
    assert {n: d.type for n, d in desk.audiences().destinations.items()} == {7301: "S2S", 7302: "BULK_TRAIT"}


def shown(desk: Desk) -> dict[int, dict[int, dict[str, Any]]]:
    catalog = desk.catalog()
    with catalog.reading() as session:
        documents = destination_documents(catalog, session, desk.audiences())
    return {one["destinationId"]: {mapping["sid"]: mapping for mapping in one["mappings"]} for one in documents}


@pytest.mark.rule("API-196", "OB-37", "OB-48")
def test_mappings_say_what_they_map_and_whether_it_goes_out(desk: Desk) -> None:
    pixel = {
        "destinationId": 6,
        "name": "Pixel",
        "destinationType": "PUSH",
        "mappings": [{"sid": 20, "url": "http://x"}],
    }
    desk.apply(workspace({"mappings": [{"sid": 20}, {"sid": 21}, {"sid": 11, "traitType": "TRAIT"}]}))
    desk.apply(only(destinations=[pixel], segments=[{"sid": 21, "status": "PAUSED"}]))
    mappings = shown(desk)[5]
    assert {s: (m["elementName"], m["elementDescription"], m["elementStatus"]) for s, m in mappings.items()} == {
        20: ("S", None, "active"),
        21: ("R", "the rest", "inactive"),
        11: ("A", "a", "active"),
    }
    assert mappings[20]["mappingId"] == mappings[20]["destinationMappingId"] == 1
    assert (mappings[20]["destinationId"], mappings[20]["traitValue"]) == (5, 0)
    assert mappings[20].keys().isdisjoint({"url", "secureUrl", "valueAlias", "tagCode", "activeSince"})
    assert (shown(desk)[6][20]["url"], shown(desk)[6][20]["tagCode"]) == ("http://x", None)
    desk.apply(
        only(
            dataSources=[{"dataSourceId": 10, "dataExportRestrictions": ["PII"]}],
            destinations=[{"destinationId": 5, "dataExportLabels": ["PII"]}],
            segments=[{"sid": 20, "name": "Renamed"}],
        )
    )
    assert [m["elementStatus"] for m in shown(desk)[5].values()] == ["inactive"] * 3
    assert shown(desk)[6][20]["elementName"] == "Renamed"
    assert shown(desk)[6][20]["elementStatus"] == "active"


@pytest.mark.rule("API-97", "API-116", "QL-704", "QL-1020")
def test_segments_as_the_api_shows_them(desk: Desk) -> None:
    desk.apply(workspace())
    first, second = segment_documents(desk.audiences())
    assert list(first)[:2] == ["sid", "pid"]
    assert (first["mergeRuleDataSourceId"], first["status"], first["legacyId"]) == (0, "ACTIVE", None)
    assert (second["legacyId"], second["createTime"]) == (7, int(NOW.timestamp() * 1000))
    rule = {
        "mergeRuleDataSourceId": 800,
        "name": "M",
        "authenticatedOption": "NO_CROSS_DEVICE",
        "deviceOption": "DEVICE",
    }
    desk.apply(only(mergeRules=[rule]))
    new = {"sid": 29, "name": "New", "dataSourceId": 10, "segmentRule": first["segmentRule"]}
    desk.apply(only(segments=[new, {"sid": first["sid"], "name": "Named again"}]))

    def rules() -> list[int]:
        return [one["mergeRuleDataSourceId"] for one in segment_documents(desk.audiences())]

    # what was made before the rule keeps the built-in one
    assert rules() == [0, 0, 800]
    desk.apply(only(mergeRules=[{**rule, "mergeRuleDataSourceId": 801, "name": "N", "isDefault": True}]))
    assert rules() == [0, 0, 800]
    desk.apply(only(segments=[{"sid": first["sid"], "mergeRuleDataSourceId": 0}]))
    assert rules() == [801, 0, 800]


def test_instants_are_whole_seconds(desk: Desk) -> None:
    desk.now = datetime(2026, 3, 2, 11, 4, 9, 987654, tzinfo=UTC)
    desk.apply(workspace({"mappings": [{"sid": 20}]}))
    assert desk.audiences().destinations[5].mappings[0].since == int(NOW.timestamp())
