"""Export controls: the matrix, what brings a control in, what is refused, what comes later (OB-38 … OB-49)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine

from catalog.desk import DAY, Desk
from openaudience.catalog.automatic import RANGES
from openaudience.catalog.base import open_engine
from openaudience.catalog.export_controls import clash, segment_controls, trait_controls
from openaudience.catalog.migrate import upgrade

CODES = ("PII", "ONSITE_ADS", "OFFSITE_ADS", "ONSITE_PERSONALIZATION")
FOLDER_1 = RANGES["FOLDER_TRAIT"][0] + 1


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    opened = open_engine(f"sqlite:///{tmp_path / 'catalog.db'}")
    upgrade(opened)
    yield opened
    opened.dispose()


@pytest.fixture
def desk(engine: Engine, tmp_path: Path) -> Desk:
    return Desk(engine, tmp_path)


@pytest.mark.rule("OB-38", "OB-39", "OB-40", "OB-41", "OB-42", "OB-45")
@pytest.mark.rule("QL-1401", "QL-1402", "QL-1403", "QL-1404", "QL-1405", "QL-1406")
@pytest.mark.parametrize("control", [None, *CODES])
@pytest.mark.parametrize("label", [None, *CODES])
def test_the_matrix(control: str | None, label: str | None) -> None:
    controls = trait_controls(1, lambda _: 10, lambda _: [control] if control else [])
    found = clash(controls, [label] if label else [])
    assert found == ({control} if control is not None and control == label else set())


@pytest.mark.rule("OB-45", "QL-1406")
def test_one_match_among_several_is_enough() -> None:
    controls = trait_controls(1, lambda _: 10, lambda _: ["PII", "ONSITE_ADS"])
    assert clash(controls, ["OFFSITE_ADS", "ONSITE_ADS"]) == {"ONSITE_ADS"}
    assert clash(controls, ["OFFSITE_ADS", "ONSITE_PERSONALIZATION"]) == set()
    assert clash(controls, CODES) == {"PII", "ONSITE_ADS"}


@pytest.mark.rule("OB-43", "QL-1407")
def test_the_controls_of_a_segment_are_a_union() -> None:
    """Traits 1 and 2 of sources 10 and 20, the folder trait 3 over 4 of source 30, a merge rule with source 40."""
    sources = {1: 10, 2: 20, 3: 0, 4: 30}
    members = {3: [4]}
    for chosen in product([False, True], repeat=5):
        codes: dict[int, list[str]] = {10: [], 20: [], 30: [], 40: [], 0: []} | {
            dpid: [code] for dpid, code, on in zip((10, 20, 30, 40), CODES, chosen, strict=False) if on
        }
        on_rule = ["PII"] if chosen[4] else []
        found = segment_controls(
            [1, 2, 3], lambda sid: members.get(sid, []), sources.__getitem__, codes.__getitem__, (800, on_rule, [40])
        )
        expected = {code for code, on in zip(CODES, chosen, strict=False) if on} | set(on_rule)
        assert found.keys() == expected
    assert segment_controls([1], lambda _: [], sources.__getitem__, lambda _: []) == {}


def partner(**given: Any) -> str:
    """640 may carry controls, 641 carries none; segment 20 uses traits of both, one under NOT; 21 only of 641."""
    document = {
        "pid": 1,
        "name": "acme",
        "dataSources": [
            {"dataSourceId": 640, "name": "Site"},
            {"dataSourceId": 641, "name": "Shop"},
            {"dataSourceId": 31, "name": "Club", "idType": "CROSS_DEVICE", "integrationCode": "club"},
        ],
        "folders": {"traits": [{"folderId": 1, "name": "F"}, {"folderId": 2, "name": "G", "parentFolderId": 1}]},
        "traits": [
            {"sid": 11, "name": "A", "traitType": "ON_BOARDED_TRAIT", "dataSourceId": 640},
            {"sid": 12, "name": "B", "traitType": "ON_BOARDED_TRAIT", "dataSourceId": 641},
        ],
        "segments": [
            {"sid": 20, "name": "S", "dataSourceId": 641, "segmentRule": "12T AND NOT 11T"},
            {"sid": 21, "name": "R", "dataSourceId": 640, "segmentRule": "12T"},
        ],
        "destinationServers": [{"serverId": 1, "name": "Here", "type": "LOCAL", "directory": "/out"}],
        "destinations": [{"destinationId": 5, "name": "D"} | NEW],
    }
    return only(**(document | given))


def only(**given: Any) -> str:
    return yaml.safe_dump({"partners": [{"pid": 1, "name": "acme"} | given]})


NEW = {"destinationType": "S2S", "dataSourceId": 641, "userIdKey": 0, "serverId": 1}


def control(*codes: str, dpid: int = 640) -> dict[str, Any]:
    return {"dataSources": [{"dataSourceId": dpid, "dataExportRestrictions": list(codes)}]}


def label(*codes: str, **more: Any) -> dict[str, Any]:
    return {"destinations": [{"destinationId": 5, "dataExportLabels": list(codes), **more}]}


def mapped(*sids: int, kind: str = "SEGMENT") -> dict[str, Any]:
    return {"mappings": [{"sid": sid, "traitType": kind} for sid in sids]}


def told(desk: Desk, text: str) -> list[str]:
    return [mistake.split(": ", 1)[1] for mistake in desk.mistakes(text)]


@pytest.mark.rule("OB-43", "OB-44", "OB-46", "QL-1407", "QL-1408", "API-197")
def test_what_is_blocked_is_not_mapped(desk: Desk) -> None:
    desk.apply(partner())
    desk.apply(only(**control("PII", "ONSITE_ADS")))
    desk.apply(only(**label("PII")))
    assert told(desk, only(**label("PII", **mapped(20)))) == [
        "E_EXPORT_CONTROL: segment 20 may not go to destination 5: PII of data source 640 (trait 11)"
    ]
    assert told(desk, only(**label("PII", **mapped(11, kind="TRAIT")))) == [
        "E_EXPORT_CONTROL: trait 11 may not go to destination 5: PII of data source 640 (trait 11)"
    ]
    # the segment's own data source brings nothing, and the trait of another one neither
    desk.apply(only(**label("PII", **mapped(21))))
    desk.apply(only(**label("OFFSITE_ADS", **mapped(20))))
    assert [mapping.sid for mapping in desk.audiences().destinations[5].mappings] == [21, 20]


@pytest.mark.rule("OB-43", "OB-46", "QL-1408")
def test_folder_traits_and_merge_rules_bring_controls_in(desk: Desk) -> None:
    desk.apply(
        partner(
            traits=[
                {"sid": 11, "name": "A", "traitType": "ON_BOARDED_TRAIT", "dataSourceId": 640, "folderId": 2},
                {"sid": 12, "name": "B", "traitType": "ON_BOARDED_TRAIT", "dataSourceId": 641},
            ],
            mergeRules=[
                {
                    "mergeRuleDataSourceId": 800,
                    "name": "M",
                    "authenticatedOption": "NO_CROSS_DEVICE",
                    "deviceOption": "DEVICE",
                },
                {
                    "mergeRuleDataSourceId": 801,
                    "name": "L",
                    "authenticatedOption": "LAST_AUTHENTICATED",
                    "deviceOption": "DEVICE",
                    "dataSourceIds": [31],
                    "dataExportRestrictions": ["ONSITE_ADS"],
                },
            ],
        )
    )
    desk.apply(
        only(
            segments=[
                {"sid": 22, "name": "Folder", "dataSourceId": 641, "segmentRule": f"{FOLDER_1}T"},
                {"sid": 23, "name": "Login", "dataSourceId": 641, "segmentRule": "12T", "mergeRuleDataSourceId": 801},
            ]
        )
    )
    desk.apply(
        only(
            dataSources=[
                {"dataSourceId": 640, "dataExportRestrictions": ["PII"]},
                {"dataSourceId": 31, "dataExportRestrictions": ["OFFSITE_ADS"]},
            ]
        )
    )
    start = "E_EXPORT_CONTROL: segment"
    assert told(desk, only(**label(*CODES, **mapped(22)))) == [
        f"{start} 22 may not go to destination 5: PII of data source 640 (trait 11)"
    ]
    assert told(desk, only(**label(*CODES, **mapped(23)))) == [
        f"{start} 23 may not go to destination 5: OFFSITE_ADS of data source 31 (merge rule 801), "
        "ONSITE_ADS of merge rule 801"
    ]
    desk.apply(only(**label(*CODES, **mapped(21))))


@pytest.mark.rule("OB-47", "QL-1408")
def test_a_mapped_segment_is_not_changed_into_a_blocked_one(desk: Desk) -> None:
    rules = [
        {"mergeRuleDataSourceId": 800, "name": "M", "authenticatedOption": "NO_CROSS_DEVICE", "deviceOption": "DEVICE"},
        {
            "mergeRuleDataSourceId": 801,
            "name": "L",
            "authenticatedOption": "NO_CROSS_DEVICE",
            "deviceOption": "EXTERNAL_GRAPH",
            "dataExportRestrictions": ["PII"],
        },
    ]
    desk.apply(partner(mergeRules=rules))
    desk.apply(only(**control("PII")))
    desk.apply(only(**label("PII", **mapped(21))))
    assert told(desk, only(segments=[{"sid": 21, "segmentRule": "12T OR 11T"}])) == [
        "E_EXPORT_CONTROL: segment 21 may not go to destination 5: PII of data source 640 (trait 11)"
    ]
    assert told(desk, only(segments=[{"sid": 21, "mergeRuleDataSourceId": 801}])) == [
        "E_EXPORT_CONTROL: segment 21 may not go to destination 5: PII of merge rule 801"
    ]
    assert desk.audiences().segments[21].rule == "12T"
    assert desk.audiences().segments[21].merge_rule == 800
    # its name may change, and a segment that is mapped nowhere may use what it likes
    desk.apply(only(segments=[{"sid": 21, "name": "Q"}, {"sid": 20, "segmentRule": "11T"}]))


def since(desk: Desk) -> dict[int, int]:
    return {mapping.sid: mapping.since for mapping in desk.audiences().destinations[5].mappings}


def blocked(desk: Desk) -> dict[int, frozenset[str]]:
    return {mapping.sid: mapping.blocked for mapping in desk.audiences().destinations[5].mappings if mapping.blocked}


@pytest.mark.rule("OB-48", "OB-33", "QL-1409")
@pytest.mark.parametrize("way", ["label", "control", "merge rule", "folder"])
def test_a_clash_that_comes_later_stops_the_mapping_until_it_goes(desk: Desk, way: str) -> None:
    """It is allowed, other segments go out, and the mapping starts anew when its cause goes."""
    rule = {
        "mergeRuleDataSourceId": 800,
        "name": "M",
        "authenticatedOption": "NO_CROSS_DEVICE",
        "deviceOption": "DEVICE",
    }
    graph = rule | {"mergeRuleDataSourceId": 801, "name": "G", "deviceOption": "EXTERNAL_GRAPH"}
    segment = {"sid": 20, "name": "S"}
    start = {
        "label": [control("PII"), label()],
        "control": [label("PII")],
        "merge rule": [label("PII"), {"segments": [segment | {"mergeRuleDataSourceId": 801}]}],
        "folder": [label("PII"), control("PII"), {"segments": [segment | {"segmentRule": f"{FOLDER_1}T"}]}],
    }[way]
    come = {
        "label": label("PII"),
        "control": control("PII"),
        "merge rule": {"mergeRules": [graph | {"dataExportRestrictions": ["PII"]}]},
        "folder": {"traits": [{"sid": 11, "folderId": 2}]},
    }[way]
    go = {
        "label": label("ONSITE_ADS"),
        "control": control(),
        "merge rule": {"mergeRules": [graph | {"dataExportRestrictions": []}]},
        "folder": {"traits": [{"sid": 11, "folderId": 0}]},
    }[way]
    desk.apply(partner(mergeRules=[rule, graph]))
    for text in start:
        desk.apply(only(**text))
    labels = desk.exported()["partners"][0]["destinations"][0]["dataExportLabels"]
    desk.apply(only(**label(*labels, **mapped(20, 21))))
    first = since(desk)
    assert blocked(desk) == {}
    desk.now += DAY
    desk.apply(only(**come))
    assert blocked(desk) == {20: {"PII"}}
    assert since(desk) == first
    desk.now += DAY
    desk.apply(only(segments=[segment | {"description": "while it is blocked"}]))
    desk.now += DAY
    desk.apply(only(**go))
    assert blocked(desk) == {}
    assert since(desk) == {21: first[21], 20: int(desk.now.timestamp())}
    # once more changes nothing
    desk.now += DAY
    assert desk.apply(only(**go)) == []
    assert since(desk)[20] == int(desk.now.timestamp()) - 86400


@pytest.mark.rule("OB-49")
def test_bulk_destinations_leave_out_what_is_controlled(desk: Desk) -> None:
    desk.apply(partner())
    desk.apply(only(**control("PII")))
    audiences = desk.audiences()
    assert audiences.blocked(11, ["PII"]) == {"PII"}
    assert audiences.blocked(12, ["PII"]) == audiences.blocked(11, ["ONSITE_ADS"]) == audiences.blocked(11, []) == set()
    assert audiences.blocked(20, ["PII"]) == {"PII"}
    assert audiences.blocked_source(640, ["PII"]) == {"PII"}
    assert audiences.blocked_source(641, ["PII"]) == set()
