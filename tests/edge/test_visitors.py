"""The segments in an answer: walk-throughs with hand-made calls, and random histories against the definitions and
against batch evaluation (QL-903, QL-905, RT-1207)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest

from openaudience.calls.model import PLATFORM, Call, OptOut, Origin, Pair, Realized
from openaudience.calls.store import View
from openaudience.catalog.audiences import Audiences
from openaudience.edge.visitors import Visitors
from openaudience.home import Home
from openaudience.rules.segments import read_segment, satisfied_by_nothing
from openaudience.rules.segments_profile import Qualification, naive
from openaudience.runs.applier import Applier
from openaudience.runs.loads import loads_in_force
from openaudience.runs.membership import Definitions
from openaudience.runs.site import Lease, Site
from openaudience.runs.world import DEVICES, as_of
from openaudience.store.tables import Tables
from oracle.driver import Product
from oracle.model import Limits
from oracle.walkthroughs import onboarded

PID = 900
D = [f"{number:038d}" for number in range(1, 130)]


def rule_based(sid: int, **more: Any) -> dict[str, Any]:
    return onboarded(sid, 22, f'c_sid == "{sid}"', traitType="RULE_BASED_TRAIT", **more)


def segment(sid: int, rule: str, merge_rule: int | None = None, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"sid": sid, "name": f"S{sid}", "dataSourceId": 22, "segmentRule": rule, **more}
    return made if merge_rule is None else {**made, "mergeRuleDataSourceId": merge_rule}


def merging(number: int, option: str, device: str | None, *sources: int) -> dict[str, Any]:
    made = {"mergeRuleDataSourceId": number, "name": f"M{number}", "authenticatedOption": option}
    return made | ({"deviceOption": device} if device else {}) | ({"dataSourceIds": list(sources)} if sources else {})


def cross_device(dpid: int) -> dict[str, Any]:
    return {"dataSourceId": dpid, "name": f"C{dpid}", "idType": "CROSS_DEVICE", "integrationCode": f"c{dpid}"} | {
        "supportsAuthenticatedProfile": True
    }


M1, M3, M4, M5, M7 = 8801, 8803, 8804, 8805, 8807
MERGE_RULES = [
    merging(M1, "NO_CROSS_DEVICE", "DEVICE") | {"isDefault": True},
    merging(M4, "LAST_AUTHENTICATED", "DEVICE", 60, 61),
    merging(M5, "LAST_AUTHENTICATED", "PROFILE_LINK", 60),
    merging(M7, "ALL_CROSS_DEVICE", None, 60),
]
LOGIN = [MERGE_RULES[0], merging(M3, "CURRENT_AUTHENTICATED", "NO_DEVICE", 60, 61)]


def workspace(
    segments: Sequence[Mapping[str, Any]], rules: Sequence[Mapping[str, Any]] = MERGE_RULES, **partner: Any
) -> dict[str, Any]:
    """The partner of these tests, beside one whose segments must never show."""
    acme = {
        "pid": PID,
        "name": "acme",
        "dataSources": [
            {"dataSourceId": 22, "name": "Site", "idType": "COOKIE"},
            cross_device(60),
            cross_device(61),
        ],
        "traits": [
            *(rule_based(sid) for sid in (100, 200, 1000, 2000, 12, 13, 21, 22)),
            *(rule_based(sid, ttl=ttl) for sid, ttl in ((101, 1), (102, 2), (103, 3), (104, 0))),
            onboarded(11, 60, "ic == 11"),
            onboarded(111, 60, "ic == 111", ttl=3),
            onboarded(112, 22, "ic == 112", ttl=2),
        ],
        "mergeRules": list(rules),
        "segments": list(segments),
    }
    bolt = {
        "pid": 901,
        "name": "bolt",
        "dataSources": [{"dataSourceId": 33, "name": "Shop", "idType": "COOKIE"}],
        "traits": [onboarded(5001, 33, 'c_sid == "5001"', traitType="RULE_BASED_TRAIT")],
        "segments": [{"sid": 5901, "name": "theirs", "dataSourceId": 33, "segmentRule": "5001T"}],
    }
    return {"partners": [acme | partner, bolt]}


class Edge:
    """Decides calls as the edge does: in a transaction of the store, by the generation that was read last."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.home = Home.open(product.home, clock=lambda: product.now)
        self.site = Site(self.home, "production")
        self.read()

    def close(self) -> None:
        self.site.close()
        self.home.close()

    def read(self) -> None:
        with self.site.looking() as (session, generation, world):
            definitions = Definitions(Audiences.of(self.site.catalog, session))
            loads = loads_in_force(session, self.site.name)
        self.world = world
        self.visitors = Visitors(self.site, world, loads, definitions, as_of(generation))

    def call(self, call: Call, pid: int = PID) -> list[int]:
        """The segments of the answer."""

        def work(view: View) -> tuple[Call, list[int]]:
            def undrained(dpid: int, id: str) -> list[Call]:
                return view.calls_of(dpid, id, self.world.drained)

            return call, self.visitors.segments(pid, call, undrained, call.at)

        self.product.now = max(self.product.now, datetime.fromtimestamp(call.at, UTC))
        (found,) = self.site.calls.group([work])
        if isinstance(found, Exception):
            raise found
        return found

    def drain(self) -> None:
        with Lease(self.site) as lease:
            Applier(self.site).drain(lease)
        self.read()

    def judge(self) -> None:
        """The batch run for everybody."""
        with Lease(self.site) as lease:
            Applier(self.site).evaluate(lease, None, "daily")
        self.read()

    def data(self, dpid: int, lines: str) -> None:
        """A data file; of UUIDs for data source 22 if ``dpid`` is 0."""
        names = f"ftp_dpm_{dpid}_22" if dpid == 0 else f"ftp_dpm_{dpid}"
        (receipt,) = self.product.drop([(f"{names}_{int(self.product.now.timestamp())}.sync", lines.encode())])
        assert receipt["status"] == "processed", receipt
        self.read()

    def sync(self, dpid: int, lines: str) -> None:
        name = f"adobe_id_0_{dpid}_{int(self.product.now.timestamp())}.sync"
        (receipt,) = self.product.drop([(name, lines.encode())])
        assert receipt["status"] == "processed", receipt
        self.read()

    def member_of(self, sids: Sequence[int], namespace: int, id: str) -> list[int]:
        """The segments that the index has a profile in."""
        ordinal = self.visitors.ordinal(namespace, id)
        return [sid for sid in sids if ordinal >= 0 and self.world.members(namespace).holds(sid, ordinal)]


def moment(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-{text}:00+00:00")


def hit(at: str | datetime, uuid: str, *sids: int, ids: Sequence[tuple[int, str, int]] = (), **more: Any) -> Call:
    """A call as section 9 of the calls has it: realised by the customers in state 1, or else by the device."""
    when = at if isinstance(at, datetime) else moment(at)
    customers = tuple(Pair(*one) for one in ids if one[2] == 1)
    where = [(one.dpid, one.id) for one in customers] or [(DEVICES, "")]
    return Call(
        at=int(when.timestamp()),
        pid=PID,
        uuid=uuid,
        presented=True,
        origin=Origin.EVENT,
        pairs=tuple(Pair(*one) for one in ids),
        realized=tuple(Realized(sid, *one) for sid in sids for one in where),
        customers=customers,
        **more,
    )


Make = Callable[..., Edge]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    edges: list[Edge] = []

    def made(document: Mapping[str, Any], at: str = "06-01 08:00", limits: Limits | None = None) -> Edge:
        product = Product(tmp_path / "home", None, limits)
        product.now = moment(at)
        product.apply(document)
        edges.append(Edge(product))
        return edges[-1]

    yield made
    for edge in edges:
        edge.close()


Between = Callable[[Edge], None]
BETWEEN: dict[str, Between] = {"undrained": lambda edge: None, "drained": Edge.drain}


@pytest.fixture(params=BETWEEN)
def between(request: pytest.FixtureRequest) -> Between:
    """What happens after each call; it must make no difference."""
    return BETWEEN[request.param]


# ---- walk-throughs ---------------------------------------------------------------------------------------------------


@pytest.mark.rule("QL-W3", "QL-903")
def test_frequency_caps(make: Make, between: Between) -> None:
    edge = make(
        workspace(
            [
                segment(300, "100T AND frequency([200T]) <= 3"),
                segment(301, "100T AND frequency([200T] <= 1D) <= 3"),
                segment(302, "frequency([100T, 200T]) >= 2"),
            ]
        )
    )
    found = []
    calls: list[tuple[str, tuple[int, ...]]] = [
        ("07-01 10:00", (100,)),
        ("07-01 11:00", (200,)),
        ("07-02 09:00", (200,)),
        ("07-03 09:00", (200,)),
        ("07-03 10:00", (200,)),
        ("07-03 11:00", (200,)),
        ("07-04 00:30", ()),
    ]
    for at, sids in calls:
        found.append(edge.call(hit(at, D[0], *sids)))
        between(edge)
    all_of_them = [300, 301, 302]
    assert found == [[300, 301], all_of_them, all_of_them, all_of_them, [301, 302], [302], [301, 302]]


@pytest.mark.rule("QL-W12", "QL-902", "QL-908")
def test_a_conversion_leaves_with_its_own_call(make: Make, between: Between) -> None:
    edge = make(workspace([segment(800, "1000T AND NOT 2000T")]))
    assert edge.call(hit("07-01 10:00", D[0], 1000)) == [800]
    between(edge)
    assert edge.call(hit("07-01 10:05", D[0], 1000, 2000)) == []
    between(edge)
    assert edge.call(hit("07-01 10:10", D[0])) == []
    assert edge.call(hit("07-01 10:10", D[1], 1000)) == [800]


@pytest.mark.rule("RT-1207")
def test_active_segments_of_the_partner_are_listed_in_order(make: Make) -> None:
    """A2: a device that nobody knew before; paused segments and those of others do not show."""
    edge = make(
        workspace(
            [
                segment(6003, "100T OR 200T"),
                segment(6001, "100T AND 200T"),
                segment(6002, "100T", status="INACTIVE"),
                segment(6004, "1000T"),
            ]
        )
    )
    first = hit("07-01 10:00", D[0], 100, 200)
    assert edge.call(first) == [6001, 6003]
    assert edge.call(hit("07-01 10:01", D[1], 100)) == [6003]
    theirs = Call(first.at, 901, D[0], True, Origin.EVENT, realized=(Realized(5001),))
    assert edge.call(theirs, 901) == [5901]
    assert edge.call(hit("07-01 10:02", D[0])) == [6001, 6003]
    assert edge.call(hit("07-01 10:03", "")) == []


@pytest.mark.rule("QL-W4", "QL-1015", "QL-1018")
def test_households(make: Make, between: Between) -> None:
    rule = "11T AND 12T AND 13T"
    edge = make(workspace([segment(400 + number, rule, merge) for number, merge in ((1, M1), (4, M4), (5, M5))]))
    edge.data(60, "h1\t11\nh2\t11\nh3\t11\n")
    devices = dict(zip(("d1", "d2", "d3", "d4", "d5"), D, strict=False))

    def visit(name: str, household: str | None, *sids: int) -> list[int]:
        ids = [] if household is None else [(60, household, 0)]
        found = edge.call(hit(edge.product.now + timedelta(minutes=1), devices[name], *sids, ids=ids))
        between(edge)
        return found

    assert visit("d1", "h1", 12) == []
    assert visit("d2", "h1", 13) == [405]
    assert visit("d3", "h2", 12, 13) == [404, 405]
    assert visit("d4", "h2", 12) == [405]
    assert visit("d5", None, 12, 13) == []
    assert [visit(name, None) for name in devices] == [[405], [405], [404, 405], [405], []]


@pytest.mark.rule("QL-W5", "QL-1019")
def test_clusters_add_up_and_grow_with_the_call(make: Make, between: Between) -> None:
    edge = make(
        workspace(
            [
                segment(506, "frequency([1000T]) == 6", M5),
                segment(5100, "frequency([1000T]) >= 100", M5),
                segment(5101, "frequency([1000T]) >= 101", M5),
            ]
        )
    )
    for count, device in ((2, D[0]), (3, D[1])):
        for minute in range(count):
            edge.call(hit(f"07-01 10:0{minute}", device, 1000, ids=[(60, "two", 0)]))
    between(edge)
    assert edge.call(hit("07-01 11:00", D[1], 1000)) == [506]
    between(edge)
    assert edge.call(hit("07-01 11:01", D[0])) == [506]
    many = [edge.call(hit("07-02 10:00", device, 1000, ids=[(60, "j", 0)])) for device in D[2:102]]
    assert [found for found in many if found] == [[506], [5100]]
    between(edge)
    # the hundred and first pushes out the one synced longest ago
    assert edge.call(hit("07-02 11:00", D[102], 1000, ids=[(60, "j", 0)])) == [5100]
    assert edge.call(hit("07-02 11:01", D[2])) == []
    assert edge.call(hit("07-02 11:02", D[3])) == [5100]


@pytest.mark.rule("QL-W7", "QL-1017")
def test_shared_device_current_login(make: Make, between: Between) -> None:
    edge = make(workspace([segment(500, "21T AND 22T", M3), segment(501, "21T OR 22T", M1)], LOGIN))
    found = []
    for at, sid, id, state in (
        ("10:00", 21, "j1", 1),
        ("10:01", 22, "j1", 1),
        ("10:02", 21, "j2", 1),
        ("10:03", 22, "j1", 2),
    ):
        found.append(edge.call(hit(f"07-01 {at}", D[0], sid, ids=[(60, id, state)])))
        between(edge)
    assert found == [[], [500], [], [501]]
    # several in one call are merged
    assert edge.call(hit("07-01 11:00", D[1], ids=[(60, "j2", 1), (61, "k", 1)])) == []
    between(edge)
    assert edge.call(hit("07-01 11:01", D[1], 22, ids=[(61, "k", 1)])) == []
    between(edge)
    assert edge.call(hit("07-01 11:02", D[1], ids=[(60, "j2", 1), (61, "k", 1)])) == [500]
    assert edge.call(hit("07-01 11:03", D[1], ids=[(60, "j2", 1), (61, "k", 0)])) == []


# ---- merge rules -----------------------------------------------------------------------------------------------------


@pytest.mark.rule("RT-310", "QL-1011")
def test_the_last_authenticated_is_the_newest_in_state_1(make: Make, between: Between) -> None:
    edge = make(workspace([segment(404, "11T", M4), segment(405, "11T", M5)]))
    edge.data(60, "gold\t11\n")
    both = [404, 405]
    found = []
    for minute, *ids in (
        (0, (60, "gold", 0)),
        (1, (60, "tin", 0)),  # newest of those in no state
        (2, (60, "gold", 2)),
        (3, (60, "gold", 1)),
        (4, (60, "tin", 0)),
        (5, (60, "tin", 2)),  # neither of them counts beside state 1
        (6, (60, "tin", 1)),
        (7, (60, "gold", 1), (60, "lead", 1)),  # both at once: the later in the call
    ):
        found.append(edge.call(hit(f"07-01 10:0{minute}", D[0], ids=ids)))
        between(edge)
    assert found == [both, [], both, both, both, both, [], []]


@pytest.mark.rule("RT-1207", "QL-1008")
def test_customers_of_batch_only_rules_are_as_the_index_has_them(make: Make) -> None:
    edge = make(workspace([segment(407, "11T", M7)]))
    edge.data(60, "gold\t11\n")
    assert edge.call(hit("07-01 10:00", D[0], ids=[(60, "gold", 1)])) == [407]
    assert edge.call(hit("07-01 10:01", D[0], ids=[(60, "gold", 0)])) == []
    assert edge.call(hit("07-01 10:02", D[0], ids=[(60, "tin", 1)])) == []
    assert edge.call(hit("07-01 10:03", D[0])) == []


# ---- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.rule("QL-903", "QL-504")
def test_what_expired_since_the_generation_does_not_count(make: Make) -> None:
    """Onboarded and rule-based; renewed by the index's newer load, or by a call."""
    edge = make(workspace([segment(912, "112T"), segment(902, "102T"), segment(911, "111T", M4)]))
    edge.product.now = moment("07-01 10:00")
    edge.sync(22, f"{D[0]}\tx\n{D[1]}\ty\n")
    edge.data(0, f"{D[0]}\t112\n{D[1]}\t112\n")
    edge.data(60, "gold\t111\n")
    edge.call(hit("07-01 10:00", D[0], 102, ids=[(60, "gold", 0)]))
    edge.call(hit("07-01 10:00", D[1], 102))
    edge.drain()
    edge.product.now = moment("07-02 10:00")
    edge.data(0, f"{D[1]}\t112\n")
    edge.call(hit("07-02 10:00", D[1], 102))
    edge.drain()
    visits = [(at, device) for at in ("07-03 09:59", "07-03 10:00", "07-04 09:59", "07-04 10:00") for device in D[:2]]
    found = [edge.call(hit(at, device)) for at, device in visits]
    assert found == [[902, 911, 912], [902, 912], [911], [902, 912], [911], [902, 912], [], []]
    assert edge.call(hit("07-04 10:01", D[0], 102)) == [902]


@pytest.mark.rule("QL-512")
def test_counts_start_anew_after_expiry(make: Make, between: Between) -> None:
    edge = make(workspace([segment(910 + n, f"frequency([102T]) == {n}") for n in range(1, 5)]))
    found = []
    for at in ("07-01 10:00", "07-03 09:59", "07-05 09:58", "07-07 09:58", "07-07 09:59"):
        found.append(edge.call(hit(at, D[0], 102)))
        between(edge)
    assert found == [[911], [912], [913], [911], [912]]


def test_facts_are_read_only_to_count(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    edge = make(
        workspace(
            [
                segment(901, "100T OR frequency([200T]) >= 5"),
                segment(902, "1000T AND frequency([100T] <= 2D) >= 1"),
                segment(903, "1000T AND frequency([100T]) == 3"),
                segment(904, "frequency([2000T] >= 1D) >= 1"),
                segment(905, "frequency([100T]) >= 1"),
            ]
        )
    )
    for minute in range(3):
        edge.call(hit(f"07-01 10:0{minute}", D[0], 100))
    edge.drain()
    reads: list[str] = []
    scan = Tables.scan

    def counted(self: Tables, name: str, *args: Any, **more: Any) -> pl.LazyFrame:
        reads.append(name)
        return scan(self, name, *args, **more)

    monkeypatch.setattr(Tables, "scan", counted)
    assert edge.call(hit("07-01 11:00", D[0])) == [901, 905]
    assert reads == []
    assert edge.call(hit("07-01 11:01", D[0], 1000)) == [901, 902, 903, 905]
    once = len(reads)
    assert once > 0
    assert edge.call(hit("07-01 11:02", D[0], 200)) == [901, 902, 903, 905]
    assert len(reads) == once


# ---- opt-outs and the platform's own traits --------------------------------------------------------------------------


@pytest.mark.rule("RT-1508")
@pytest.mark.parametrize("pid", [PID, PLATFORM, 901])
def test_those_opted_out_are_in_nothing(make: Make, between: Between, pid: int) -> None:
    edge = make(workspace([segment(401, "12T"), segment(404, "11T", M4), segment(405, "12T AND 13T", M5)]))
    edge.data(60, "gold\t11\n")
    edge.call(hit("07-01 10:00", D[0], 12, ids=[(60, "gold", 0)]))
    between(edge)
    assert edge.call(hit("07-01 10:01", D[1], 13, ids=[(60, "gold", 0)])) == [404, 405]
    between(edge)
    edge.call(hit("07-01 10:02", D[0], optouts=(OptOut(pid, DEVICES, D[0]),)))
    between(edge)
    out = pid != 901
    assert edge.call(hit("07-01 10:03", D[1])) == ([404] if out else [404, 405])
    assert edge.call(hit("07-01 10:03", D[0])) == ([404] if out else [401, 404, 405])
    edge.call(hit("07-01 10:04", "", optouts=(OptOut(pid, 60, "gold"),)))
    between(edge)
    assert edge.call(hit("07-01 10:05", D[1])) == ([] if out else [404, 405])


@pytest.mark.rule("RT-220", "QL-205")
def test_the_platforms_own_traits(make: Make, between: Between) -> None:
    edge = make(workspace([]))
    traits = edge.visitors.audiences.traits.values()
    (active,) = (trait.sid for trait in traits if trait.pid == PID and trait.type == "ACTIVE_AUDIENCE_TRAIT")
    synced = {t.dpid: t.sid for t in traits if t.pid == PID and t.type == "DATA_SOURCE_SYNCED_TRAIT"}
    edge.product.apply(
        workspace([segment(901, f"{active}T"), segment(902, f"{synced[60]}T"), segment(903, f"{synced[61]}T", M4)])
    )
    edge.read()
    assert edge.call(hit("07-01 10:00", D[0])) == [901]
    assert edge.call(hit("07-01 10:01", D[0], ids=[(60, "a", 1)])) == [901, 902]
    between(edge)
    assert edge.call(hit("07-01 10:02", D[0])) == [901, 902]
    assert edge.call(hit("07-01 10:03", D[1], ids=[(61, "b", 0)])) == [901, 903]


# ---- random histories ------------------------------------------------------------------------------------------------


TTL = {101: 1, 102: 2, 103: 3, 104: 0, 111: 3, 112: 2}
ONBOARDED = {111, 112}


class Kinds:
    def type(self, sid: int) -> str:
        return "ON_BOARDED_TRAIT" if sid in ONBOARDED else "RULE_BASED_TRAIT"

    def third_party(self, sid: int) -> bool:
        return False

    def members(self, sid: int) -> frozenset[int]:
        return frozenset()


Profile = tuple[int, str]


@dataclass
class Model:
    """Everything that happened, and what follows from the definitions."""

    limits: Limits
    realized: dict[tuple[Profile, int], list[datetime]] = field(default_factory=dict)
    last: dict[tuple[int, str, str], int] = field(default_factory=dict)
    """(DPID, device, customer) → number of the last sync; ``sure``: of the last in state 1."""
    sure: dict[tuple[int, str, str], int] = field(default_factory=dict)
    number: int = 0

    def realize(self, profile: Profile, sid: int, at: datetime) -> None:
        self.realized.setdefault((profile, sid), []).append(at)

    def take(self, call: Call) -> None:
        for pair in call.pairs:
            self.number += 1
            key = pair.dpid, call.uuid, pair.id
            self.last[key] = self.number
            if pair.state == 1:
                self.sure[key] = self.number
            self._evict([one for one in self.last if one[:2] == key[:2]], self.limits.customers_per_device)
            same = [one for one in self.last if (one[0], one[2]) == (key[0], key[2])]
            self._evict(same, self.limits.devices_per_customer)
        for one in call.realized:
            profile = (one.dpid, one.id) if one.dpid else (DEVICES, call.uuid)
            self.realize(profile, one.sid, datetime.fromtimestamp(call.at, UTC))

    def _evict(self, pairs: list[tuple[int, str, str]], most: int) -> None:
        if len(pairs) > most:
            oldest = min(pairs, key=lambda pair: self.last[pair])
            del self.last[oldest]
            self.sure.pop(oldest, None)

    def last_authenticated(self, dpid: int, device: str) -> str | None:
        for numbers in (self.sure, self.last):
            mine = {number: one[2] for one, number in numbers.items() if one[:2] == (dpid, device)}
            if mine:
                return mine[max(mine)]
        return None

    def together(self, merge: int, call: Call) -> list[Profile]:
        if merge == M3:
            return [(one.dpid, one.id) for one in call.customers]
        found: list[Profile] = [(DEVICES, call.uuid)]
        for dpid in {M1: (), M4: (60, 61), M5: (60,)}[merge]:
            customer = self.last_authenticated(dpid, call.uuid)
            if customer is None:
                continue
            found.append((dpid, customer))
            if merge == M5:
                others = {device for one, device, _ in self.last if one == dpid} - {call.uuid}
                found += [(DEVICES, one) for one in others if self.last_authenticated(dpid, one) == customer]
        return found

    def holds(self, profile: Profile) -> dict[int, Qualification]:
        found = {}
        for (whose, sid), instants in self.realized.items():
            if whose != profile:
                continue
            days: dict[date, int] = {}
            last: datetime | None = None
            for at in instants:
                if last is not None and (end := expiry(last, TTL[sid])) is not None and at >= end:
                    days = {}
                last = at
                days[at.date()] = days.get(at.date(), 0) + 1
            assert last is not None
            found[sid] = Qualification(days, last, expiry(last, TTL[sid]))
        return found

    def judged(self, rule: str, merge: int, call: Call) -> bool:
        profiles = [self.holds(one) for one in self.together(merge, call)]
        return naive(read_segment(rule), profiles, datetime.fromtimestamp(call.at, UTC), Kinds())


def expiry(last: datetime, ttl: int) -> datetime | None:
    if ttl == 0:
        return None
    if ttl == 1:
        return datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=2)
    return last + timedelta(days=ttl)


def random_rule(rng: Random) -> str:
    def term() -> str:
        if rng.random() < 0.5:
            return f"{rng.choice(sorted(TTL))}T"
        sids = ",".join(f"{sid}T" for sid in rng.sample(sorted(TTL.keys() - ONBOARDED), rng.randint(1, 3)))
        window = rng.choice(["", "", f" <= {rng.randint(1, 3)}D", f" >= {rng.randint(1, 3)}D"])
        return f"FREQUENCY([{sids}]{window}) {rng.choice(['>=', '<=', '=='])} {rng.randint(0, 5)}"

    def part(depth: int) -> str:
        if depth == 0 or rng.random() < 0.3:
            return term()
        if rng.random() < 0.25:
            return f"NOT ({part(depth - 1)})"
        return f"({part(depth - 1)} {rng.choice(['AND', 'OR'])} {part(depth - 1)})"

    while satisfied_by_nothing(read_segment(rule := part(2))):
        pass
    return rule


def walk(edge: Edge, rng: Random, segments: Mapping[int, tuple[str, int]], model: Model, length: int) -> int:
    """Random calls, files, drains and batch runs; gives in how many segments callers were."""
    devices = D[:6]
    customers = [(60, "a"), (60, "b"), (60, "c"), (61, "x"), (61, "y")]
    joined = 0
    for _ in range(length):
        edge.product.now += timedelta(seconds=rng.choice([1, 60, 3_000, 20_000, 80_000]))
        now = edge.product.now
        dice = rng.random()
        if dice < 0.04:
            device = rng.choice(devices)
            edge.data(0, f"{device}\t112\n")
            model.realize((DEVICES, device), 112, now)
            continue
        if dice < 0.08:
            customer = rng.choice(customers[:3])
            edge.data(60, f"{customer[1]}\t111\n")
            model.realize(customer, 111, now)
            continue
        named = rng.sample(customers, rng.choice([0, 0, 1, 1, 2]))
        ids = [(*one, rng.choice([0, 1, 1, 2])) for one in named]
        sids = rng.sample(sorted(TTL.keys() - ONBOARDED), rng.randint(0, 2))
        call = hit(now, rng.choice(devices), *sids, ids=ids)
        model.take(call)
        right = [sid for sid, (rule, merge) in segments.items() if model.judged(rule, merge, call)]
        assert edge.call(call) == right, (call, right)
        joined += len(right)
        if dice > 0.9:
            (edge.judge if dice > 0.95 else edge.drain)()
            if dice > 0.95:
                mine = [(DEVICES, call.uuid)]
                batch = {sid for one in mine for sid in edge.member_of([*segments], *one)}
                assert batch == {sid for sid in right if segments[sid][1] != M3}
    return joined


def history(make: Make, seed: int, length: int) -> int:
    rng = Random(seed)
    login = seed % 2 == 0
    merges = (M1, M3) if login else (M1, M4, M5)
    segments = {7000 + n: (random_rule(rng), merges[n % len(merges)]) for n in range(24)}
    documents = [segment(sid, rule, merge) for sid, (rule, merge) in segments.items()]
    limits = Limits(devices_per_customer=4, customers_per_device=2)
    edge = make(workspace(documents, LOGIN if login else MERGE_RULES), limits=limits)
    edge.sync(22, "".join(f"{device}\t{device[-1]}\n" for device in D[:6]))
    return walk(edge, rng, segments, Model(limits), length)


@pytest.mark.rule("QL-903", "QL-905")
@pytest.mark.parametrize("seed", range(2))
def test_answers_follow_the_definitions_and_agree_with_batch(make: Make, seed: int) -> None:
    assert history(make, seed, 50) > 50


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 22))
def test_many_histories(make: Make, seed: int) -> None:
    history(make, seed, 200)
