"""Opt-outs in files, their re-runs and segments (20 §15, IN-65, IN-77)."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from pyroaring import BitMap

from openaudience.identity.ecid import to_ecid
from openaudience.runs import optouts
from openaudience.runs.checking import check
from openaudience.runs.membership import evaluate_all
from openaudience.runs.site import Lease
from oracle.driver import Product
from oracle.walkthroughs import figures, held, onboarded, one
from runs.opting import EVERYBODY, opened, opt_out

ORG = "ACMEACME01@AcmeOrg"
ACME, GLOBEX = 1, 2
U1, U2, U3, U4 = (str(digit) * 38 for digit in (1, 2, 3, 4))
GAID = "e4fe9bde-caa0-47b6-908d-ffba3fa184f2"
GAID2 = GAID[:-1] + "3"
IDFA = "6D92078A-8246-4BA4-AE5B-76104861E7DC"
MAIL, MAIL2 = "a" * 64, "b" * 64


def merge_rule(number: int, authenticated: str, device: str, *sources: int) -> dict[str, Any]:
    return {
        "mergeRuleDataSourceId": number,
        "name": f"Rule {number}",
        "authenticatedOption": authenticated,
        "deviceOption": device,
        "dataSourceIds": list(sources),
        "isDefault": not sources,
    }


def segment(sid: int, rule: str, merge: int = 9001, **more: Any) -> dict[str, Any]:
    return {
        "sid": sid,
        "name": f"S{sid}",
        "dataSourceId": 101,
        "segmentRule": rule,
        "mergeRuleDataSourceId": merge,
        **more,
    }


def workspace(**status: str) -> dict[str, Any]:
    """acme (101 cookies, 107 ECIDs, 108 UUIDs, 201 and 202 customers) may send to 301 of globex."""
    authenticated = {"idType": "CROSS_DEVICE", "supportsAuthenticatedProfile": True}
    acme = {
        "pid": ACME,
        "name": "acme",
        "orgId": ORG,
        "dataSourceAccess": [301],
        "dataSources": [
            {"dataSourceId": 101, "name": "Site", "idType": "COOKIE"},
            {"dataSourceId": 102, "name": "Shop", "idType": "COOKIE"},
            {"dataSourceId": 107, "name": "Visitors", "idType": "COOKIE", "marketingCloudVisitorIdVersion": 1},
            {"dataSourceId": 108, "name": "Devices", "idType": "COOKIE", "useAudienceManagerVisitorID": True},
            {"dataSourceId": 201, "name": "People", "integrationCode": "people", **authenticated},
            {"dataSourceId": 202, "name": "Mails", "integrationCode": "mails", **authenticated},
        ],
        "traits": [onboarded(11, 101), onboarded(12, 101), onboarded(21, 201)],
        "mergeRules": [
            merge_rule(9001, "NO_CROSS_DEVICE", "DEVICE"),
            merge_rule(9004, "LAST_AUTHENTICATED", "DEVICE", 201),
            merge_rule(9005, "LAST_AUTHENTICATED", "PROFILE_LINK", 201),
        ],
        "segments": [
            segment(401, "11T"),
            segment(402, "12T", status=status.get("of402", "ACTIVE")),
            segment(404, "11T OR 21T", 9004),
            segment(405, "11T AND NOT 21T", 9004),
            segment(406, "11T AND 12T", 9005),
        ],
    }
    globex = {
        "pid": GLOBEX,
        "name": "globex",
        "dataSources": [{"dataSourceId": 301, "name": "Other", "idType": "COOKIE"}],
        "traits": [onboarded(31, 301)],
        "segments": [{"sid": 501, "name": "S501", "dataSourceId": 301, "segmentRule": "31T"}],
    }
    return {"partners": [acme, globex]}


class World(Product):
    """An installation that is driven by files."""

    def __init__(self, home: Path, document: dict[str, Any] | None, stamp: int) -> None:
        super().__init__(home, document)
        self._stamp = stamp

    def sent(self, name: str, *lines: str, **expected: Any) -> int:
        """Drops a file; gives its job. ``expected``: figures of the receipt."""
        self._stamp += 1
        receipt = one(self, f"{name}_{self._stamp}.sync", "".join(f"{line}\n" for line in lines).encode())
        assert receipt["status"] == "processed", receipt
        figures(receipt, **expected)
        return int(receipt["job"])

    def members(self, sid: int) -> set[str]:
        with opened(self) as site:
            _, world = site.current()
            return {
                world.ids(namespace).name(ordinal).decode()
                for namespace in (0, 201, 202)
                for ordinal in world.members(namespace).members(sid)
            }


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> World:
    """a → U1, b → U2 and U3, x → nobody any more."""
    made = World(tmp_path_factory.mktemp("optouts") / "home", workspace(), 1700000000)
    gone = made.sent("adobe_id_0_101", f"{U4}\tx")
    made.sent("adobe_id_0_101", f"{U1}\ta", f"{U2}\tb", f"{U3}\tb")
    made.undo(gone)
    return made


@pytest.fixture
def world(filled: World, tmp_path: Path) -> World:
    """A copy of it."""
    return World(Path(shutil.copytree(filled.home, tmp_path / "home")), None, 1700001000)


@pytest.mark.parametrize("many", [0, 7, 1 << 20])
def test_many_ids_are_looked_up_as_few_are(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    monkeypatch.setattr(optouts, "MANY", many)
    there = {5: {ACME: BitMap([0, 3, 9]), EVERYBODY: BitMap([4])}}
    stub = SimpleNamespace(
        layers={"optouts/1": ["x"]}, opted_out=lambda pid, dpid: there.get(dpid, {}).get(pid, BitMap())
    )
    out = optouts.OptOuts(cast(Any, stub), [ACME])
    for asked in (
        np.array([-1, 0, 3, 4, 5, 9, 10, 99, 3], np.int64),
        np.array([], np.int64),
        np.array([9, 2], np.int64),
    ):
        assert out.hit(5, asked).tolist() == [ordinal in (0, 3, 4, 9) for ordinal in asked.tolist()]
        assert not out.hit(6, asked).any()
    assert out.hit(5, np.array([9, 10], np.uint32)).tolist() == [True, False]
    assert not optouts.OptOuts(cast(Any, stub), [GLOBEX])


# ---- data files --------------------------------------------------------------------------------------------------


@pytest.mark.rule("IN-65", "IN-86", "RT-1507")
def test_an_opted_out_id_matches_nobody_before_it_is_said_to_be_not_synced(world: World) -> None:
    opt_out(world, ACME, "101:a", "101:x")
    world.sent(
        "ftp_dpm_101",
        "a\td_sid=11",
        "x\td_sid=11",
        "b\td_sid=11",
        "nobody\td_sid=11",
        "a\td_sid=12",
        reason_counts={"opted_out": 3, "not_synced": 1},
        no_matching_aam_ids=4,
        stored_records=1,
        total_devices=2,
    )
    assert (held(world, U1), held(world, U2), held(world, U3)) == (set(), {11}, {11})


@pytest.mark.rule("IN-65", "IN-60")
def test_opted_out_devices_are_left_out_among_several(world: World) -> None:
    opt_out(world, ACME, U2)
    world.sent("ftp_dpm_101", "b\td_sid=11", "a\td_sid=11", stored_records=2, total_devices=2)
    assert (held(world, U1), held(world, U2), held(world, U3)) == ({11}, set(), {11})
    opt_out(world, ACME, U3)
    world.sent("ftp_dpm_101", "b\td_sid=12", "a\td_sid=12", reason_counts={"opted_out": 1}, total_devices=1)
    assert held(world, U3) == {11}


@pytest.mark.rule("IN-65")
@pytest.mark.parametrize(("pid", "own", "others"), [(ACME, 1, 1), (GLOBEX, 0, 1), (EVERYBODY, 1, 1)])
def test_the_opt_outs_of_whom_count(world: World, pid: int, own: int, others: int) -> None:
    """The platform's, the sender's (acme) and those of the target's owner (globex)."""
    opt_out(world, pid, U1)
    world.sent("ftp_dpm_101", "a\td_sid=11", no_matching_aam_ids=own, stored_records=1 - own)
    world.sent("ftp_dpm_101_301", "a\td_sid=31", no_matching_aam_ids=others, stored_records=1 - others)


@pytest.mark.rule("IN-65", "IN-61", "IN-62", "IN-63", "IN-86")
def test_opt_outs_of_every_kind_of_id(world: World) -> None:
    world.sent("ftp_dpm_20914_101", f"{GAID}\td_sid=11", f"{GAID2}\td_sid=11")
    world.sent("ftp_dpm_odc_101", f"idfa\t{IDFA}\td_sid=11")
    world.sent("ftp_dpm_201", "c1\td_sid=21", "c2\td_sid=21")
    own = world.profile(f"20914:{GAID2}")
    assert own is not None
    assert isinstance(own["device"], str)
    opt_out(world, ACME, U1, U4, f"20914:{GAID}", own["device"], f"20915:{IDFA}", "201:c1")
    out = {"opted_out": 2}
    fresh = GAID[:-1] + "4"
    # U4 is no known device any more, but it opted out
    world.sent("ftp_dpm_0_101", f"{U1}\td_sid=12", f"{U4}\td_sid=12", f"{U2}\td_sid=12", reason_counts=out)
    world.sent("ftp_dpm_108_101", f"{U1}\td_sid=12", f"{U4}\td_sid=12", f"{'9' * 38}\td_sid=12",
               reason_counts={**out, "unknown_aam_id": 1})  # fmt: skip
    world.sent("ftp_dpm_107_101", *(f"{to_ecid(ORG, one)}\td_sid=12" for one in (U1, U4, U2)), reason_counts=out)
    world.sent(
        "ftp_dpm_20914_101",
        f"{GAID}\td_sid=12",
        f"{GAID2}\td_sid=12",
        f"{fresh}\td_sid=12",
        reason_counts=out,
        total_devices=1,
    )
    world.sent(
        "ftp_dpm_odc_101",
        f"gaid\t{GAID}\td_sid=12",
        f"idfa\t{IDFA}\td_sid=12",
        f"gaid\t{fresh}\td_sid=12",
        reason_counts=out,
        stored_records=1,
    )
    world.sent("ftp_dpm_201", "c1\td_unsid=21", "c2\td_unsid=21", "c3\td_sid=21", reason_counts={"opted_out": 1})
    assert held(world, "201:c1") == {21}
    assert held(world, "201:c2") == set()
    assert (held(world, U1), held(world, U2), held(world, f"20914:{fresh}")) == (set(), {12}, {12})
    assert held(world, f"20914:{GAID}") == held(world, f"20915:{IDFA}") == {11}


@pytest.mark.rule("IN-64", "IN-65")
def test_no_help_leads_to_an_opted_out_id(world: World) -> None:
    opt_out(world, ACME, "101:a")
    world.sent(
        "ftp_dpm_101", "A\td_sid=11", "B\td_sid=11", case_help={"count": 1, "pairs": [{"sent": "B", "known": "b"}]}
    )


# ---- ID-sync files -----------------------------------------------------------------------------------------------


def ids_of(world: World, text: str) -> set[str]:
    profile = world.profile(text)
    return set() if profile is None else {name for _, name in profile["ids"]}


@pytest.mark.rule("IN-77", "IN-65", "RT-1507")
def test_a_row_of_an_id_sync_file_with_an_opted_out_id_stores_nothing(world: World) -> None:
    opt_out(world, ACME, "101:a", U2)
    world.sent(
        "adobe_id_0_102_101",
        f"{U4}\tnew1\ta",
        f"{U2}\tnew2\tq",
        f"{U3}\tnew3\tq",
        reason_counts={"opted_out": 2},
        stored_records=1,
        new_mappings=2,
    )
    assert ids_of(world, U3) == {"b", "new3", "q"}
    assert ids_of(world, U2) == {"b"}
    # neither did the row make its device known, nor its other ID
    world.sent("ftp_dpm_0_101", f"{U4}\td_sid=11", reason_counts={"unknown_aam_id": 1})
    with opened(world) as site:
        _, now = site.current()
        assert [now.ids(102).name(ordinal) for ordinal in range(now.count(102))] == [b"new3"]


@pytest.mark.rule("IN-77", "IN-71", "IN-74")
def test_masters_of_every_kind(world: World) -> None:
    world.sent("ftp_dpm_20914_101", f"{GAID}\td_sid=11", f"{GAID2}\td_sid=11")
    world.sent("c2c_id_201_202", f"c1\t{MAIL}", f"c2\t{MAIL2}")
    own = world.profile(f"20914:{GAID2}")
    assert own is not None
    opt_out(world, ACME, U1, U2, U4, f"20914:{GAID}", own["device"], "201:c1", f"202:{MAIL2}")
    # a reaches U1 alone, b also U3
    world.sent("adobe_id_101_102", "a\tm1", "b\tm2", "x\tm3", reason_counts={"opted_out": 1, "not_synced": 1},
               new_mappings=1)  # fmt: skip
    assert ids_of(world, U3) == {"b", "m2"}
    world.sent(
        "adobe_id_107_102",
        *(f"{to_ecid(ORG, one)}\tn" for one in (U1, U4, "9" * 38, U3)),
        reason_counts={"opted_out": 2, "unknown_aam_id": 1},
        new_mappings=1,
    )
    fresh = GAID[:-1] + "4"
    world.sent("adobe_id_20914_102", f"{GAID}\tp1", f"{GAID2}\tp2", f"{fresh}\tp3", reason_counts={"opted_out": 2})
    world.sent("c2c_id_201_202", f"c1\t{'c' * 64}", f"c3\t{MAIL2}", f"c3\t{MAIL}", reason_counts={"opted_out": 2},
               new_mappings=1)  # fmt: skip


@pytest.mark.rule("IN-55", "RT-1512")
def test_a_file_that_runs_again_leaves_out_who_opted_out_since(world: World) -> None:
    more = world.sent("adobe_id_0_101", f"{U4}\tb")
    world.sent("ftp_dpm_101", "a\td_sid=11", "b\td_sid=11")
    opt_out(world, ACME, "101:a", U2)
    world.undo(more)
    assert (held(world, U1), held(world, U2), held(world, U3), held(world, U4)) == (set(), set(), {11}, set())
    with opened(world) as site:
        assert check(site, False).differences == []


# ---- segments ----------------------------------------------------------------------------------------------------


@pytest.mark.rule("RT-1508", "RT-1509", "RT-1502")
def test_who_opts_out_leaves_all_segments_of_the_partner_at_once_and_for_good(world: World) -> None:
    world.sent("ftp_dpm_0_101", f"{U1}\td_sid=11,d_sid=12", f"{U2}\td_sid=11")
    world.sent("ftp_dpm_101_301", "a\td_sid=31")
    populations = world.populations()
    assert (world.members(401), world.members(402), world.members(501)) == ({U1, U2}, {U1}, {U1})
    opt_out(world, ACME, U1)
    assert (world.members(401), world.members(402), world.members(501)) == ({U2}, set(), {U1})
    # what is stored stays: the trait and its population
    assert held(world, U1) == {11, 12, 31}
    assert world.populations() == populations
    opt_out(world, EVERYBODY, U1)
    assert world.members(501) == set()
    world.sent("ftp_dpm_0_101", f"{U1}\td_sid=11", f"{U3}\td_sid=11", reason_counts={"opted_out": 1})
    with opened(world) as site, Lease(site) as lease:
        evaluate_all(site, lease)
    assert (world.members(401), world.members(501)) == ({U2, U3}, set())
    with opened(world) as site:
        assert check(site, False).differences == []


@pytest.mark.rule("RT-1508", "QL-713")
def test_a_paused_segment_is_left_too(world: World) -> None:
    world.sent("ftp_dpm_0_101", f"{U1}\td_sid=12", f"{U2}\td_sid=12")
    world.apply(workspace(of402="INACTIVE"))
    world.sent("ftp_dpm_0_101", f"{U2}\td_unsid=12")
    assert world.members(402) == {U1, U2}
    opt_out(world, ACME, U1)
    assert world.members(402) == {U2}
    world.apply(workspace())
    with opened(world) as site, Lease(site) as lease:
        evaluate_all(site, lease)
    assert world.members(402) == set()


@pytest.mark.rule("RT-1508", "QL-1005", "QL-1006")
def test_who_opted_out_takes_no_part_in_merged_sets(world: World) -> None:
    """c1 with U1 and U2, c2 with U3: what one of them holds, the others have by it."""
    world.sent("adobe_id_0_201", f"{U1}\tc1", f"{U2}\tc1", f"{U3}\tc2", f"{U4}\tc2")
    world.sent("ftp_dpm_0_101", f"{U1}\td_sid=11", f"{U2}\td_sid=12", f"{U4}\td_sid=11")
    world.sent("ftp_dpm_201", "c2\td_sid=21")
    assert (world.members(404), world.members(405)) == ({U1, "c1", U3, U4, "c2"}, {U1, "c1"})
    assert world.members(406) == {U1, U2, "c1"}
    # the customer's trait counts no more: it was there for U3, and kept U4 out of 405
    opt_out(world, ACME, "201:c2")
    assert (world.members(404), world.members(405)) == ({U1, "c1", U4}, {U1, "c1", U4})
    # nor does the device's: c1 was in by it
    opt_out(world, ACME, U1)
    assert (world.members(404), world.members(405), world.members(406)) == ({U4}, {U4}, set())
    before = [world.members(sid) for sid in (401, 402, 404, 405, 406)]
    with opened(world) as site, Lease(site) as lease:
        evaluate_all(site, lease)
    assert [world.members(sid) for sid in (401, 402, 404, 405, 406)] == before
    # a member of the set who did not opt out does not take the others in again
    world.sent("ftp_dpm_201", "c1\td_sid=21", "c2\td_sid=21", reason_counts={"opted_out": 1})
    assert world.members(404) == {U2, "c1", U4}


@pytest.mark.rule("RT-1508", "RT-220", "QL-205")
def test_traits_that_the_platform_makes_count_for_nobody_opted_out(world: World) -> None:
    made = {one["traitType"]: one["sid"] for one in world.json("traits") if one["dataSourceId"] == 101}
    document = workspace()
    document["partners"][0]["segments"] += [
        segment(411, f"{made['DATA_SOURCE_SYNCED_TRAIT']}T"),
        segment(412, f"{made['DATA_SOURCE_SYNCED_TRAIT']}T", 9004),
    ]
    world.apply(document)
    world.sent("adobe_id_0_201", f"{U1}\tc1", f"{U2}\tc2")
    assert (world.members(411), world.members(412)) == ({U1, U2, U3}, {U1, U2, U3, "c1", "c2"})
    opt_out(world, ACME, U1)
    assert (world.members(411), world.members(412)) == ({U2, U3}, {U2, U3, "c2"})
