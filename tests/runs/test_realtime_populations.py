"""Figures that count calls: the table of QL-W11, members at the moment of a call, provisional devices, estimates."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pyroaring import BitMap

from openaudience.calls.model import Call, Origin, Pair, Realized
from openaudience.calls.store import Work
from openaudience.home import Home
from openaudience.identity.keys import key
from openaudience.profiles.stays import RANGES
from openaudience.runs.applier import Applier
from openaudience.runs.departures import Departure, Departures
from openaudience.runs.estimates import Estimates
from openaudience.runs.inquiry import Inquiry
from openaudience.runs.populations import Populations
from openaudience.runs.site import Lease, Site
from oracle.driver import Product
from oracle.walkthroughs import onboarded

UUIDS = [f"{number:038d}" for number in range(1, 20)]


def rule_based(sid: int, source: int, rule: str, **more: Any) -> dict[str, Any]:
    return onboarded(sid, source, rule, traitType="RULE_BASED_TRAIT", **more)


def segment(sid: int, rule: str, merge_rule: int | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"sid": sid, "name": f"S{sid}", "dataSourceId": 22, "segmentRule": rule}
    return made if merge_rule is None else {**made, "mergeRuleDataSourceId": merge_rule}


WORKSPACE: dict[str, Any] = {
    "partners": [
        {
            "pid": 900,
            "name": "acme",
            "dataSources": [
                {"dataSourceId": 22, "name": "Site", "idType": "COOKIE"},
                {"dataSourceId": 60, "name": "Card", "idType": "CROSS_DEVICE", "integrationCode": "card"}
                | {"supportsAuthenticatedProfile": True},
            ],
            "traits": [
                rule_based(1000, 22, 'c_page == "product"', ttl=0),
                rule_based(1001, 22, 'c_page == "order"', ttl=3),
                onboarded(3000, 22, "ic == 3", ttl=0),
                onboarded(3001, 22, "ic == 4", ttl=0),
                rule_based(4060, 60, 'c_page == "account"', ttl=0),
            ],
            "mergeRules": [
                {"mergeRuleDataSourceId": 8802, "name": "Device", "authenticatedOption": "NO_CROSS_DEVICE"}
                | {"deviceOption": "DEVICE", "isDefault": True},
                {"mergeRuleDataSourceId": 8803, "name": "Login", "authenticatedOption": "CURRENT_AUTHENTICATED"}
                | {"dataSourceIds": [60], "deviceOption": "NO_DEVICE"},
                {"mergeRuleDataSourceId": 8805, "name": "Linked", "authenticatedOption": "LAST_AUTHENTICATED"}
                | {"dataSourceIds": [60], "deviceOption": "PROFILE_LINK"},
                {"mergeRuleDataSourceId": 8801, "name": "Everybody", "authenticatedOption": "ALL_CROSS_DEVICE"}
                | {"dataSourceIds": [60]},
            ],
            "segments": [
                segment(700, "1000T OR 3000T"),
                segment(701, "1001T AND NOT 3001T"),
                segment(703, "4060T", 8803),
                segment(704, "FREQUENCY([1000T]) >= 2"),
                segment(705, "3000T AND 3001T", 8805),
                segment(707, "4060T", 8801),
            ],
        },
        {
            "pid": 901,
            "name": "other",
            "dataSources": [{"dataSourceId": 90, "name": "Foreign", "idType": "COOKIE"}],
            "traits": [rule_based(9100, 90, 'c_page == "x"')],
        },
    ]
}


@dataclass(frozen=True)
class Hit:
    """A call of a device or, in state 1, of a customer with it; and what it realised, as often as named."""

    at: datetime
    uuid: str
    sids: Collection[int] = ()
    customer: str | None = None
    cookie: str | None = None
    pid: int = 900
    presented: bool = True

    def call(self) -> Call:
        customers = () if self.customer is None else (Pair(60, self.customer, 1),)
        where = (0, "") if self.customer is None else (60, self.customer)
        return Call(
            at=int(self.at.timestamp()),
            pid=self.pid,
            uuid=self.uuid,
            presented=self.presented,
            origin=Origin.EVENT,
            pairs=customers if self.cookie is None else (*customers, Pair(22, self.cookie, 0)),
            realized=tuple(Realized(sid, *where) for sid in self.sids),
            customers=customers,
        )


@contextmanager
def opened(product: Product) -> Iterator[Site]:
    with Home.open(product.home, clock=lambda: product.now) as home:
        site = Site(home, "production")
        try:
            yield site
        finally:
            site.close()


def drain(product: Product, hits: list[Hit]) -> None:
    """The calls are answered, then drained together."""
    product.now = max(product.now, max(hit.at for hit in hits))
    with opened(product) as site, Lease(site) as lease:
        site.calls.group([work(hit.call()) for hit in hits])
        assert Applier(site).drain(lease) == len(hits)


def work(call: Call) -> Work[None]:
    return lambda view: (call, None)


def ordinal(site: Site, dpid: int, ident: str) -> int:
    return int(site.current()[1].ids(dpid).find_one(*key(ident.encode(), site.seeds)))


def day(number: int, hour: int = 9, minute: int = 0) -> datetime:
    """A moment of the days from 2026-03-01 on."""
    return datetime(2026, 3, 1, hour, minute, tzinfo=UTC) + timedelta(days=number - 1)


def figures(product: Product, sid: int, when: str) -> dict[str, Any]:
    document = product.json("populations", str(sid), "--date", when)
    assert document["date"] == when
    return dict(document)


def instant(product: Product, sid: int, when: str, days: tuple[int, ...] = RANGES) -> list[Any]:
    document = figures(product, sid, when)
    return [document[f"instantUniques{one}Day"] for one in days]


def total(product: Product, sid: int, when: str, days: tuple[int, ...] = (1,)) -> list[Any]:
    document = figures(product, sid, when)
    return [document[f"totalUniques{one}Day"] for one in days]


def file(product: Product, at: datetime, lines: str) -> None:
    """A data file of UUIDs."""
    product.now = at
    (receipt,) = product.drop([(f"ftp_dpm_0_22_{int(at.timestamp())}.sync", lines.encode())])
    assert receipt["status"] == "processed", receipt


def sync(product: Product, dpid: int, lines: str) -> None:
    (receipt,) = product.drop([(f"adobe_id_0_{dpid}_{int(product.now.timestamp())}.sync", lines.encode())])
    assert receipt["status"] == "processed", receipt


@pytest.fixture
def product(tmp_path: Path) -> Product:
    made = Product(tmp_path / "home", None)
    made.now = datetime(2026, 2, 27, 8, tzinfo=UTC)
    made.apply(WORKSPACE)
    made.now = day(1, 0)
    sync(made, 22, "".join(f"{uuid}\tx{number}\n" for number, uuid in enumerate(UUIDS[:8])))
    return made


# ---- QL-W11 ------------------------------------------------------------------------------------------------------


@pytest.mark.rule("QL-W11", "QL-1101", "QL-1102", "QL-1104", "QL-1105", "QL-1106", "UI-77", "UI-82")
def test_the_table_of_the_walk_through(product: Product) -> None:
    a, b, c = UUIDS[:3]
    drain(product, [Hit(day(1), a, [1000])])
    file(product, day(5), f"{b}\t3\n")
    drain(product, [Hit(day(9), a), Hit(day(9, 10), c, [1000])])
    product.now = day(11, 1)
    found = {}
    for when in ("2026-03-04", "2026-03-08", "2026-03-09", "2026-03-10"):
        trait = figures(product, 1000, when)["device"]
        found[when] = (
            *instant(product, 700, when, (1, 7, 14)),
            *total(product, 700, when, (1, 7)),
            *(trait[f"uniques{days}Day"] for days in (1, 7, 14)),
            trait["count14Day"],
        )
    assert found == {
        "2026-03-04": (0, 1, 1, 1, 1, 0, 1, 1, 1),
        "2026-03-08": (0, 0, 1, 2, 2, 0, 0, 1, 1),
        "2026-03-09": (2, 2, 2, 3, 3, 1, 1, 2, 2),
        "2026-03-10": (0, 2, 2, 3, 3, 0, 1, 2, 2),
    }


# ---- members at the moment of a call -----------------------------------------------------------------------------


@pytest.mark.rule("QL-1104")
def test_only_calls_of_members_count(product: Product) -> None:
    late, gone, foreign, back = UUIDS[:4]
    drain(product, [Hit(day(2), late), Hit(day(2), back, [1001])])
    file(product, day(3), f"{late}\t3\n")  # a member of 700 after its call
    drain(product, [Hit(day(4), gone, [1001]), Hit(day(4, 10), foreign, [9100], pid=901)])
    file(product, day(5), f"{gone}\t4\n{back}\t4\n{foreign}\t3\n")  # out of 701; the third into 700
    drain(product, [Hit(day(5, 10), gone, [1001]), Hit(day(5, 11), back)])
    drain(product, [Hit(day(6), foreign, pid=901)])  # a member of 700, but in a call of another partner
    product.now = day(8, 1)
    assert instant(product, 700, "2026-03-07") == [0] * 6
    assert instant(product, 701, "2026-03-02") == [1] * 6
    assert instant(product, 701, "2026-03-04") == [1, 2, 2, 2, 2, 2]
    assert instant(product, 701, "2026-03-05") == [0, 2, 2, 2, 2, 2]
    assert instant(product, 701, "2026-03-07") == [0, 2, 2, 2, 2, 2]
    assert total(product, 701, "2026-03-07", (1, 7)) == [0, 2]


@pytest.mark.rule("QL-1104")
def test_the_call_that_fulfils_a_frequency_is_a_member_s(product: Product) -> None:
    device = UUIDS[0]
    drain(product, [Hit(day(2), device, [1000])])
    drain(product, [Hit(day(3), device, [1000])])
    product.now = day(6, 1)
    assert [instant(product, 704, f"2026-03-0{number}", (1,))[0] for number in (2, 3, 4)] == [0, 1, 0]


@pytest.mark.rule("QL-1109", "UI-85")
def test_who_realised_long_ago_and_called_lately(product: Product) -> None:
    drain(product, [Hit(day(1), UUIDS[0], [1000])])
    drain(product, [Hit(day(34), UUIDS[0])])
    product.now = day(47, 1)
    when = "2026-04-15"  # day 46: 45 and 12 days later
    assert instant(product, 700, when) == [0, 0, 1, 1, 1, 1]
    document = figures(product, 1000, when)["device"]
    assert [document[f"uniques{days}Day"] for days in RANGES] == [0, 0, 0, 0, 1, 1]


def test_a_call_of_a_member_that_left_and_came_back_counts_on_its_own_day(product: Product) -> None:
    """What a call sees is decided by its own run, however often the member left and came back."""
    device = UUIDS[0]
    drain(product, [Hit(day(2, 20), device, [1001])])  # in, for three days
    file(product, day(3), f"{device}\t4\n")  # out
    drain(product, [Hit(day(4), device)])  # seen outside
    file(product, day(5), f"{device}\td_unsid=3001\n")  # in again
    drain(product, [Hit(day(5, 13), device)])  # seen inside
    product.now = day(9, 1)
    assert [instant(product, 701, f"2026-03-0{number}", (1,))[0] for number in (2, 3, 4, 5, 6)] == [1, 0, 0, 1, 0]


@pytest.mark.rule("QL-1108")
def test_only_the_calling_one_of_linked_devices_is_in_the_real_time_population(product: Product) -> None:
    sync(product, 60, f"{UUIDS[0]}\tk\n{UUIDS[1]}\tk\n")
    file(product, day(2), f"{UUIDS[0]}\t3\n{UUIDS[1]}\t4\n")
    drain(product, [Hit(day(3), UUIDS[0])])
    product.now = day(4, 1)
    assert instant(product, 705, "2026-03-03", (1, 7)) == [1, 1]
    assert total(product, 705, "2026-03-03", (1, 7)) == [2, 2]


@pytest.mark.rule("QL-1108")
def test_calls_of_customers(product: Product) -> None:
    """M3 counts the customers of the calls that were members, M7 none; devices are in neither."""
    sync(product, 60, f"{UUIDS[0]}\tj\n{UUIDS[1]}\tk\n")
    j, k = (Hit(day(3), uuid, [4060], customer) for uuid, customer in ((UUIDS[0], "j"), (UUIDS[1], "k")))
    drain(product, [j, Hit(day(3), UUIDS[1], customer="k"), Hit(day(3), UUIDS[0], [4060])])
    drain(product, [replace(j, at=day(4), sids=()), replace(k, at=day(4), sids=()), Hit(day(4), UUIDS[1])])
    product.now = day(5, 1)
    assert figures(product, 703, "2026-03-04")["counts"] == "cross_device"
    assert instant(product, 703, "2026-03-03", (1, 7)) == [1, 1]
    assert instant(product, 703, "2026-03-04", (1, 7)) == [1, 1]
    assert instant(product, 707, "2026-03-04", (1, 7)) == [0, 0]
    assert total(product, 707, "2026-03-04") == [1]


@pytest.mark.rule("QL-1104", "QL-1101", "QL-1102", "UI-81")
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_windows_are_what_each_call_saw(product: Product, seed: int) -> None:
    """A history of calls and files, drained several at a time, against the rules of the segments told call by call."""
    rng = Random(seed)
    ever: dict[str, set[int]] = {uuid: set() for uuid in UUIDS[:5]}
    ordered: dict[str, datetime] = {}
    seen: dict[int, dict[int, set[str]]] = {700: {}, 701: {}}
    realised: dict[int, dict[int, list[str]]] = {1000: {}, 1001: {}}
    codes = {"3": 3000, "4": 3001, "d_unsid=3000": -3000, "d_unsid=3001": -3001}
    for number in range(1, 9):
        # no trait of three days runs out while a drain waits
        for hour in range(number % 4, 24, 6):
            if rng.random() < 0.3:
                uuid, code = rng.choice(UUIDS[:5]), rng.choice([*codes])
                file(product, day(number, hour), f"{uuid}\t{code}\n")
                (ever[uuid].add if codes[code] > 0 else ever[uuid].discard)(abs(codes[code]))
                continue
            hits = []
            for minute in range(rng.randint(1, 4)):
                at, uuid = day(number, hour, minute), rng.choice(UUIDS[:5])
                sids = rng.choice([[], [], [1000], [1001], [1001, 1000]])
                hits.append(Hit(at, uuid, sids))
                for sid in sids:
                    realised[sid].setdefault(number, []).append(uuid)
                ever[uuid].update(set(sids) & {1000})
                if 1001 in sids:
                    ordered[uuid] = at
                if ever[uuid] & {1000, 3000}:
                    seen[700].setdefault(number, set()).add(uuid)
                if uuid in ordered and at < ordered[uuid] + timedelta(days=3) and 3001 not in ever[uuid]:
                    seen[701].setdefault(number, set()).add(uuid)
            drain(product, hits)
    product.now = day(13, 1)
    with opened(product) as site:
        look = Inquiry(site)
        for number in range(1, 13):
            populations = Populations(look, day(number).date())
            segments, traits = populations.segments([700, 701]), populations.traits([1000, 1001])
            for sid, by_day in seen.items():
                wanted = tuple(len(set().union(*within(by_day, number, days))) for days in RANGES)
                assert segments[sid].instant == wanted, (sid, number)
            for sid, lists in realised.items():
                some = [[who for one in within(lists, number, days) for who in one] for days in RANGES]
                assert traits[sid]["device"].count == tuple(map(len, some)), (sid, number)
                assert traits[sid]["device"].uniques == tuple(len(set(one)) for one in some), (sid, number)


def within(by_day: dict[int, Any], number: int, days: int) -> list[Any]:
    return [by_day[one] for one in range(number - days + 1, number + 1) if one in by_day]


@pytest.mark.rule("QL-1104", "QL-1101")
def test_calls_on_both_sides_of_midnight_in_one_drain(product: Product) -> None:
    """A drain after midnight, even after another run of the new day, leaves calls on their own days."""
    first, second = UUIDS[:2]
    file(product, day(3, 0, 1), f"{UUIDS[5]}\t4\n")
    before, after = day(3, 0) - timedelta(seconds=1), day(3, 0)
    drain(product, [Hit(before, first, [1000]), Hit(after, second, [1000])])
    product.now = day(5, 1)
    for when, count in (("2026-03-02", 1), ("2026-03-03", 1), ("2026-03-04", 0)):
        assert instant(product, 700, when, (1,)) == [count], when
        trait = figures(product, 1000, when)["device"]
        assert (trait["uniques1Day"], trait["count1Day"]) == (count, count), when


@pytest.mark.rule("QL-205")
def test_a_call_alone_makes_a_device_active(product: Product) -> None:
    (sid,) = (one["sid"] for one in product.json("traits") if (one["pid"], one["name"]) == (900, "Active Audience"))
    for hit in (Hit(day(3), UUIDS[12]), Hit(day(4), UUIDS[12]), Hit(day(4), UUIDS[13], pid=901)):
        drain(product, [hit])
    product.now = day(6, 1)
    for when, uniques, population in (("2026-03-02", 0, 8), ("2026-03-03", 1, 9), ("2026-03-05", 0, 9)):
        device = figures(product, sid, when)["device"]
        assert (device["uniques1Day"], device["populationUniques1Day"]) == (uniques, population), when
    assert figures(product, sid, "2026-03-05")["live"]["device"] == 9


# ---- provisional devices -----------------------------------------------------------------------------------------


@pytest.mark.rule("QL-1112", "RT-609", "RT-610", "UI-83", "RT-221")
def test_provisional_devices_count_nowhere_until_confirmed(product: Product) -> None:
    sure, unsure = UUIDS[0], UUIDS[10]
    drain(product, [Hit(day(2), sure, [1000]), Hit(day(2), unsure, [1000], cookie="y", presented=False)])
    product.now = day(4, 1)

    def shown() -> dict[str, Any]:
        by_name = {one["name"]: one["sid"] for one in product.json("traits") if one["pid"] == 900}
        trait, segment = figures(product, 1000, "2026-03-02"), figures(product, 700, "2026-03-02")
        synced, active = (figures(product, by_name[name], "2026-03-02") for name in ("Site", "Active Audience"))
        return {
            "trait live": trait["live"]["device"],
            "uniques": trait["device"]["uniques7Day"],
            "count": trait["device"]["count7Day"],
            "population": trait["device"]["populationUniques7Day"],
            "instant": segment["instantUniques7Day"],
            "total": segment["totalUniques7Day"],
            "synced": synced["device"]["populationUniques1Day"],
            "active": active["device"]["populationUniques1Day"],
            "sources": {one["dataSourceId"]: one["synced_devices"] for one in product.json("datasources")}[22],
            "live": segment["live"]["device"],
            "list": next(one["population"]["device"] for one in product.json("segments") if one["sid"] == 700),
            "estimate": product.json("estimate", "1000T OR 3000T")["real_time"]["estimate"],
        }

    before = shown()
    assert before == {
        "trait live": 1,
        "uniques": 1,
        "count": 1,
        "population": 1,
        "instant": 1,
        "total": 1,
        "synced": 8,
        "active": 8,
        "sources": 8,
        "live": 1,
        "list": 1,
        "estimate": 1,
    }
    # found all the same, with what it holds
    assert [trait["sid"] for trait in product.json("profile", unsure)["traits"]] == [1000]
    drain(product, [Hit(day(4, 2), unsure)])
    product.now = day(4, 3)
    # from now on all that it gathered counts, also on days that are over
    after = shown()
    assert {
        name: after[name] - count for name, count in before.items() if name not in ("instant", "total")
    } == dict.fromkeys(sorted(before.keys() - {"instant", "total"}), 1)


# ---- estimates and explanations ----------------------------------------------------------------------------------


@pytest.mark.rule("QL-1201", "OP-20")
def test_the_real_time_estimate_counts_callers_of_thirty_days(product: Product) -> None:
    a, b, c, d = UUIDS[:4]
    for hit in (Hit(day(1, 12), a, [1000]), Hit(day(1, 12, 1), b, [1000]), Hit(day(5), c, [1000], pid=901)):
        drain(product, [hit])
    drain(product, [Hit(day(6), d)])
    product.now = day(31, 12)
    document = product.json("estimate", "1000T")
    # a called 30 days ago to the second, c in calls of another partner; d does not satisfy the rule
    assert document["total"] == {"estimate": 3, "lower": 3, "upper": 3}
    assert document["real_time"] == {"estimate": 1, "lower": 1, "upper": 1}
    with opened(product) as site:
        estimates = Estimates(Inquiry(site))
        assert [estimates.real_time("1000T", days) for days in (7, 30, 60)] == [0, 1, 2]
        assert estimates.real_time("NOT 1000T AND 3000T") == 0
    assert "1 of them are devices that made a call" in product.run("estimate", "1000T")


@pytest.mark.rule("OP-16", "OP-17")
def test_a_profile_and_why_show_calls(product: Product) -> None:
    device = UUIDS[0]
    drain(product, [Hit(day(2, 9, 5), device, [1000, 1000]), Hit(day(2, 9, 6), device, [1000], cookie="n")])
    drain(product, [Hit(day(2, 10), device, [1000])])
    product.now = day(3)
    profile = product.json("profile", device)
    assert {one["id"]: one["last_sync"] for one in profile["ids"]}["n"] == "2026-03-02T09:06:00Z"
    (trait,) = profile["traits"]
    assert (trait["first_realized"], trait["last_realized"]) == ("2026-03-02T09:05:00Z", "2026-03-02T10:00:00Z")
    assert trait["frequency"] == 4
    document = product.json("why", device, "1000")
    assert document["holds"] is True
    nothing = {"job": None, "file": None, "line": None, "text": None, "op": "realized", "call": True}
    assert document["because"] == [
        {**nothing, "first": "2026-03-02T09:05:00Z", "at": "2026-03-02T09:05:00Z", "count": 2},
        {**nothing, "first": "2026-03-02T09:06:00Z", "at": "2026-03-02T09:06:00Z", "count": 1},
        {**nothing, "first": "2026-03-02T10:00:00Z", "at": "2026-03-02T10:00:00Z", "count": 1},
    ]
    printed = product.run("why", device, "1000")
    assert "2026-03-02T09:05:00Z  realized by 2 calls since 2026-03-02T09:05:00Z" in printed
    assert product.json("why", device, "3000") == {"profile": device, "sid": 3000, "holds": False, "because": []}


@pytest.mark.rule("RT-312")
def test_what_is_gone_is_found_no_more_and_said_to_be_deleted(product: Product) -> None:
    drain(product, [Hit(day(2), UUIDS[0], [4060], "j"), Hit(day(2), UUIDS[1], [4060], "k")])
    product.now = day(3)
    with opened(product) as site, Lease(site) as lease:
        gone = Departure({60: BitMap([ordinal(site, 60, "j")])})
        Departures(Applier(site)).carry_out(lease, gone, "cleaning")
    product.run("profile", "60:j", expect=(1,))
    assert [one["sid"] for one in product.json("profile", "60:k")["traits"]] == [4060]
    product.now = day(4)
    # a call makes it anew, and its past is said to be over
    drain(product, [Hit(day(4, 1), UUIDS[0], customer="j")])
    assert product.json("profile", "60:j")["traits"] == []
    document = product.json("why", "60:j", "4060")
    assert document["holds"] is False
    assert [one["op"] for one in document["because"]] == ["realized", "deleted"]
    assert "deleted with the whole profile" in product.run("why", "60:j", "4060")
    # what had happened stays in the figures of the days before
    assert figures(product, 4060, "2026-03-02")["cross_device"]["populationUniques1Day"] == 2
    assert figures(product, 4060, "2026-03-03")["cross_device"]["populationUniques1Day"] == 1
