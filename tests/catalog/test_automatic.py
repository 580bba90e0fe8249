"""Traits that the platform makes: of folders, of all devices, of synced data sources (QL-207, QL-603, RT-220)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine

from catalog.desk import DAY, Desk, acme
from openaudience.catalog import workspace
from openaudience.catalog.automatic import ACTIVE, FOLDER, OTHERS, RANGES, SYNCED
from openaudience.catalog.base import open_engine
from openaudience.catalog.migrate import upgrade

TREE = "{traits: [{folderId: 1, name: A}, {folderId: 2, name: B, parentFolderId: 1}, {folderId: 3, name: C}]}"
SPREAD = (
    "[{sid: 11, name: R, traitType: ON_BOARDED_TRAIT, dataSourceId: 10},"
    " {sid: 12, name: S, traitType: ON_BOARDED_TRAIT, dataSourceId: 10, folderId: 1},"
    " {sid: 13, name: T, traitType: RULE_BASED_TRAIT, dataSourceId: 10, folderId: 2, traitRule: 'a == 1'}]"
)
OF_A, OF_B, OF_C = (RANGES[FOLDER][0] + number for number in (1, 2, 3))
OF_SOURCE = RANGES[SYNCED][0] + 10
OF_ALL = RANGES[ACTIVE][0] + 1


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    opened = open_engine(f"sqlite:///{tmp_path / 'catalog.db'}")
    upgrade(opened)
    yield opened
    opened.dispose()


@pytest.fixture
def desk(engine: Engine, tmp_path: Path) -> Desk:
    return Desk(engine, tmp_path)


def made(desk: Desk) -> dict[int, tuple[str, str, int]]:
    """Type, name and data source of the platform's own traits."""
    found = desk.catalog().traits(automatic=True)
    return {t.sid: (t.type, t.name, t.dpid) for t in found if t.type not in ("ON_BOARDED_TRAIT", "RULE_BASED_TRAIT")}


def shown(desk: Desk, sid: int) -> dict[str, Any]:
    return next(one for one in desk.catalog().trait_documents() if one["sid"] == sid)


@pytest.mark.rule("QL-207", "QL-603", "RT-220", "QL-1902")
def test_they_come_with_what_they_stand_for(desk: Desk) -> None:
    told = desk.apply(acme(folders=TREE, traits=SPREAD))
    assert [name for _, kind, _, name in told if kind == "trait"] == ["R", "S", "T"]
    assert made(desk) == {
        OF_A: (FOLDER, "A Folder Trait", 0),
        OF_B: (FOLDER, "B Folder Trait", 0),
        OF_C: (FOLDER, "C Folder Trait", 0),
        OF_SOURCE: (SYNCED, "CRM", 10),
        OF_ALL: (ACTIVE, "Active Audience", 0),
    }
    folder = shown(desk, OF_A)
    assert (folder["description"], folder["folderId"], folder["traitRule"]) == ("Auto Created Folder Trait", 1, None)
    assert desk.catalog().rule_versions(OF_A) == []
    # they are none of the partner's own where files qualify
    assert [t.sid for t in desk.catalog().traits()] == [11, 12, 13]


@pytest.mark.rule("QL-603", "RT-220")
def test_they_are_renamed_with_it(desk: Desk) -> None:
    desk.apply(acme(folders=TREE))
    told = desk.apply(
        acme(folders="{traits: [{folderId: 1, name: New}]}", dataSources="[{dataSourceId: 10, name: Shop}]")
    )
    assert told == [("update", "dataSource", 10, "Shop"), ("update", "traitFolder", 1, "New")]
    assert made(desk)[OF_A] == (FOLDER, "New Folder Trait", 0)
    assert made(desk)[OF_SOURCE] == (SYNCED, "Shop", 10)


@pytest.mark.rule("QL-603", "QL-604")
def test_a_folder_whose_trait_is_used_stays(desk: Desk) -> None:
    segment = f"[{{sid: 20, name: S, dataSourceId: 10, segmentRule: {OF_C}T}}]"
    desk.apply(acme(folders=TREE, segments=segment))
    less = "{traits: [{folderId: 1, name: A}, {folderId: 2, name: B}]}"
    told = desk.mistakes(acme(folders=less, segments=segment), prune=True)
    assert len(told) == 1
    assert f"E_UNKNOWN_TRAIT: segmentRule: there is no trait {OF_C}" in told[0]
    desk.apply(acme(folders=less), prune=True)
    assert OF_C not in made(desk)
    assert OF_A in made(desk)


@pytest.mark.rule("QL-207", "RT-220")
def test_a_synced_trait_stays_when_its_source_is_switched_off(desk: Desk) -> None:
    source = "[{dataSourceId: 10, name: CRM, inboundS2S: %s, outboundS2S: false}]"
    desk.apply(acme(dataSources=source % "false"))
    assert OF_SOURCE not in made(desk)
    desk.apply(acme(dataSources=source % "true"))
    desk.apply(acme(segments=f"[{{sid: 20, name: S, dataSourceId: 10, segmentRule: {OF_SOURCE}T}}]"))
    desk.apply(acme(dataSources=source % "false"))
    assert OF_SOURCE in made(desk)
    assert desk.audiences().controls(20) == {}


@pytest.mark.rule("QL-207", "QL-603", "RT-220")
def test_only_the_data_source_of_a_folder_trait_can_be_changed(desk: Desk) -> None:
    desk.apply(acme(folders=TREE))
    told = desk.apply(acme(traits=f"[{{sid: {OF_A}, dataSourceId: 10}}]"))
    assert told == [("update", "trait", OF_A, "A Folder Trait")]
    assert made(desk)[OF_A] == (FOLDER, "A Folder Trait", 10)
    # and it stays when the folder is renamed, and when a number is assigned afterwards
    desk.apply(acme(folders="{traits: [{folderId: 1, name: New}]}"))
    assert made(desk)[OF_A] == (FOLDER, "New Folder Trait", 10)
    desk.apply(acme(traits="[{name: Own, traitType: ON_BOARDED_TRAIT, dataSourceId: 10}]"))
    assert [t.sid for t in desk.catalog().traits()] == [1]
    for sid in (OF_A, OF_SOURCE, OF_ALL):
        for field in ("name: X", "description: X", "ttl: 7", "folderId: 3", "status: INACTIVE"):
            (mistake,) = desk.mistakes(acme(traits=f"[{{sid: {sid}, {field}}}]"))
            assert f"trait {sid} is kept by the platform itself" in mistake
    for sid in (OF_SOURCE, OF_ALL):
        other = "[{dataSourceId: 10, name: CRM}, {dataSourceId: 11, name: Shop}]"
        (mistake,) = desk.mistakes(acme(dataSources=other, traits=f"[{{sid: {sid}, dataSourceId: 11}}]"))
        assert f"trait {sid} is kept by the platform itself" in mistake


@pytest.mark.rule("OP-33", "OP-35", "QL-603")
def test_they_stand_in_no_workspace_and_break_none(desk: Desk) -> None:
    text = acme(folders=TREE, traits=SPREAD, segments=f"[{{sid: 20, name: S, dataSourceId: 10, segmentRule: {OF_B}T}}]")
    desk.apply(text)
    before = made(desk)
    assert desk.apply(text) == []
    exported = desk.exported()
    assert [one["sid"] for one in exported["partners"][0]["traits"]] == [11, 12, 13]
    desk.now += DAY
    assert desk.apply(workspace.as_yaml(dict(exported)), environments=("production",), prune=True) == []
    assert made(desk) == before


@pytest.mark.rule("OP-33", "QL-603")
def test_a_rule_over_a_folder_means_the_same_elsewhere(desk: Desk) -> None:
    """In whatever order folders and sources were made."""
    only = ("production",)
    desk.apply(
        acme(dataSources="[{dataSourceId: 12, name: Later}]", folders="{traits: [{folderId: 3, name: C}]}"),
        environments=only,
    )
    desk.apply(acme(folders=TREE), environments=only)
    desk.apply(acme(segments=f"[{{sid: 20, name: S, dataSourceId: 12, segmentRule: {OF_C}T}}]"), environments=only)
    desk.apply(yaml.safe_dump(dict(desk.exported())), environments=("beta",))
    for environment in ("production", "beta"):
        found = {t.sid: t.name for t in desk.catalog(environment).traits(automatic=True)}
        assert found[OF_C] == "C Folder Trait"
    assert desk.exported("beta") == desk.exported()


@pytest.mark.rule("QL-005", "OP-33")
def test_their_numbers_are_nobody_elses(desk: Desk) -> None:
    for entry in (
        acme(traits="[{sid: 2000000007, name: T, traitType: ON_BOARDED_TRAIT, dataSourceId: 10}]"),
        acme(segments="[{sid: 2000000007, name: S, dataSourceId: 10, segmentRule: 1T}]"),
    ):
        told = desk.mistakes(entry)
        assert "sid: numbers from 2000000000 on are the platform's own; choose a lower one" in told[0]
    # what has a number beyond the range of its type gets one all the same
    desk.apply(acme(folders="{traits: [{folderId: 2000000000, name: Far}, {folderId: 1999999999, name: Near}]}"))
    names = {sid: name for sid, (_, name, _) in made(desk).items()}
    assert sorted([names.pop(OTHERS), names.pop(OTHERS + 1)]) == ["Far Folder Trait", "Near Folder Trait"]


@pytest.mark.rule("QL-605", "QL-606", "QL-607")
def test_what_a_folder_trait_consists_of(desk: Desk) -> None:
    desk.apply(acme(folders=TREE, traits=SPREAD))
    audiences = desk.audiences()
    assert audiences.folder_members(OF_A) == {12, 13}
    assert audiences.folder_members(OF_B) == {13}
    assert audiences.folder_members(OF_C) == frozenset()
    assert audiences.folder_members(OF_ALL) == audiences.folder_members(12) == frozenset()
    # a trait that moves, a folder that moves with what is in it
    desk.apply(acme(traits="[{sid: 12, name: S, folderId: 3}]"))
    assert desk.audiences().folder_members(OF_A) == {13}
    assert desk.audiences().folder_members(OF_C) == {12}
    desk.apply(acme(folders="{traits: [{folderId: 2, name: B, parentFolderId: 3}]}"))
    assert desk.audiences().folder_members(OF_A) == frozenset()
    assert desk.audiences().folder_members(OF_C) == {12, 13}
