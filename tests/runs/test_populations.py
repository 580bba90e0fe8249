"""Figures of windows: the walk-throughs number by number, and a history against what was seen each midnight."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
import yaml

from openaudience.errors import InputError
from openaudience.home import Home
from openaudience.profiles.stays import RANGES
from openaudience.runs.applying import instants
from openaudience.runs.inquiry import Inquiry
from openaudience.runs.membership import evaluate_all
from openaudience.runs.populations import Populations
from openaudience.runs.site import Lease, Site
from openaudience.store.schemas import part_schema
from oracle.driver import Product
from oracle.walkthroughs import Maker, onboarded, ql_w1

UUIDS = [f"{number:038d}" for number in range(1, 40)]
APRIL = datetime(2026, 4, 1, 8, tzinfo=UTC)


@contextmanager
def opened(product: Product) -> Iterator[Site]:
    with Home.open(product.home, clock=lambda: product.now) as home:
        site = Site(home, "production")
        try:
            yield site
        finally:
            site.close()


def evaluate(product: Product) -> None:
    with opened(product) as site, Lease(site) as lease:
        evaluate_all(site, lease)


def figures(product: Product, sid: int, day: str) -> dict[str, Any]:
    """All figures of an item for a day."""
    document = product.json("populations", str(sid), "--date", day)
    assert document["date"] == day
    return dict(document)


def of(
    document: dict[str, Any], name: str, kind: str | None = "cross_device", days: tuple[int, ...] = RANGES
) -> list[Any]:
    inner = document if kind is None else document[kind]
    return [inner[f"{name}{one}Day"] for one in days]


def product_maker(folder: Path) -> Maker:
    def make(workspace: Any, *, beta: bool = False) -> Product:
        product = Product(folder / "home", None)
        product.now = datetime(2026, 3, 31, 8, 0, tzinfo=UTC)
        product.apply(workspace)
        return product

    return make


# ---- the walk-throughs -------------------------------------------------------------------------------------------

W2 = {
    "2026-04-01": (2, 2, 2, 1, 1, 1),
    "2026-04-02": (1, 2, 2, 0, 1, 0),
    "2026-04-03": (0, 2, 2, 0, 1, 0),
    "2026-04-08": (0, 1, 2, 0, 0, 0),
}
"""By date: 9001 unique 1 d, unique 7 d, total 1 d; 9003 the same."""


@pytest.mark.rule("QL-W1", "QL-W2", "QL-1101", "QL-1103", "QL-1107", "UI-74", "UI-76", "UI-79", "UI-82")
def test_overwrite_renewal_and_expiry_in_the_reports(tmp_path: Path) -> None:
    product = ql_w1(product_maker(tmp_path))
    assert isinstance(product, Product)
    product.now = datetime(2026, 4, 2, 8, 0, tzinfo=UTC)
    product.drop([("ftp_dpm_21_1775116000.overwrite", b"u1\t501\n")])

    def row(day: str) -> tuple[int, ...]:
        found: list[int] = []
        for sid in (9001, 9003):
            document = figures(product, sid, day)
            assert not any(of(document, "count")), "only rule-based traits have totals"
            for name in ("uniques", "count", "populationUniques"):
                assert of(document, name, "device") == [0] * 6
            found += [*of(document, "uniques", days=(1, 7)), *of(document, "populationUniques", days=(1,))]
        return tuple(found)

    for day, expected in W2.items():
        product.now = max(product.now, datetime.fromisoformat(f"{day}T00:40:00+00:00") + timedelta(days=1))
        assert row(day) == expected, day
    product.now = datetime(2026, 8, 2, 9, tzinfo=UTC)
    # what is closed stays as it was
    assert {day: row(day) for day in W2} == W2
    late = {
        day: of(figures(product, 9001, day), "populationUniques", days=(1, 7))
        for day in ("2026-07-29", "2026-07-30", "2026-07-31")
    }
    assert {day: found[0] for day, found in late.items()} == {"2026-07-29": 2, "2026-07-30": 1, "2026-07-31": 0}
    assert late["2026-07-31"][1] == 2


@pytest.mark.rule("UI-09", "QL-1101")
def test_an_undone_file_is_taken_out_of_past_days(tmp_path: Path) -> None:
    product = ql_w1(product_maker(tmp_path))
    assert isinstance(product, Product)
    product.now = datetime(2026, 4, 2, 8, 0, tzinfo=UTC)
    (receipt,) = product.drop([("ftp_dpm_21_1775116000.overwrite", b"u1\t501\n")])
    product.now = datetime(2026, 4, 9, 8, 0, tzinfo=UTC)
    before = figures(product, 9001, "2026-04-02")
    product.undo(receipt["job"])
    after = {sid: figures(product, sid, "2026-04-02") for sid in (9001, 9003)}
    assert of(after[9001], "uniques") == [0, 2, 2, 2, 2, 2]
    assert of(after[9003], "populationUniques") == [1] * 6
    product.redo(receipt["job"])
    again = figures(product, 9001, "2026-04-02")
    assert again == {**before, "computed": again["computed"]}
    assert of(figures(product, 9001, "2026-04-08"), "uniques", days=(1, 7)) == [0, 1]


TELCO = {
    "partners": [
        {
            "pid": 900,
            "name": "acme",
            "dataSources": [
                {"dataSourceId": 22, "name": "Site", "idType": "COOKIE"},
                {"dataSourceId": 60, "name": "Card", "idType": "CROSS_DEVICE", "integrationCode": "card"}
                | {"supportsAuthenticatedProfile": True},
                *(
                    {"dataSourceId": dpid, "name": f"N{dpid}", "idType": "CROSS_DEVICE", "integrationCode": f"n{dpid}"}
                    for dpid in (61, 62, 63, 64)
                ),
            ],
            "folders": {
                "traits": [{"folderId": 5, "name": "Cars"}, {"folderId": 6, "name": "Luxury", "parentFolderId": 5}]
            },
            "traits": [
                onboarded(1000, 22, "ic == 1", ttl=0),
                onboarded(3000, 22, "ic == 3", ttl=0, folderId=5),
                onboarded(3001, 22, "ic == 4", ttl=3, folderId=6),
                onboarded(3002, 22, "ic == 5", ttl=1, folderId=6),
                onboarded(4000, 22, "ic == 9", traitType="RULE_BASED_TRAIT"),
                *(onboarded(4000 + dpid, dpid, "ic == 1") for dpid in (60, 61, 62, 63, 64)),
            ],
            "mergeRules": [
                {
                    "mergeRuleDataSourceId": 8800,
                    "name": "Last login",
                    "authenticatedOption": "LAST_AUTHENTICATED",
                    "dataSourceIds": [60],
                    "deviceOption": "DEVICE",
                },
                {
                    "mergeRuleDataSourceId": 8801,
                    "name": "Everybody",
                    "authenticatedOption": "ALL_CROSS_DEVICE",
                    "dataSourceIds": [60],
                },
                {"mergeRuleDataSourceId": 8802, "name": "Device", "authenticatedOption": "NO_CROSS_DEVICE"}
                | {"deviceOption": "DEVICE", "isDefault": True},
            ],
            "segments": [
                {"sid": 700, "name": "S700", "dataSourceId": 22, "segmentRule": "1000T OR 3000T"},
                {"sid": 701, "name": "S701", "dataSourceId": 22, "segmentRule": "3001T AND NOT 3002T"},
                {"sid": 702, "name": "S702", "dataSourceId": 22, "segmentRule": "4060T"}
                | {"mergeRuleDataSourceId": 8800},
                {"sid": 703, "name": "S703", "dataSourceId": 22, "segmentRule": "4060T"}
                | {"mergeRuleDataSourceId": 8801},
            ],
        }
    ]
}


def changed(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The workspace after a change of its partner."""
    workspace = copy.deepcopy(TELCO)
    change(workspace["partners"][0])
    return workspace


@pytest.fixture
def product(tmp_path: Path) -> Product:
    made = Product(tmp_path / "home", None)
    made.now = datetime(2026, 2, 27, 8, tzinfo=UTC)
    made.apply(TELCO)
    return made


def devices(product: Product, at: datetime, lines: str) -> int:
    """One file of UUIDs; gives its job."""
    product.now = at
    (receipt,) = product.drop([(f"ftp_dpm_0_22_{int(at.timestamp())}.sync", lines.encode())])
    assert receipt["status"] == "processed", receipt
    return int(receipt["job"])


def sync(product: Product, dpid: int, lines: str) -> None:
    (receipt,) = product.drop([(f"adobe_id_0_{dpid}_{int(product.now.timestamp())}.sync", lines.encode())])
    assert receipt["status"] == "processed", receipt


@pytest.mark.rule("QL-1105", "QL-1108", "UI-78")
def test_segment_totals_of_the_walk_through(product: Product) -> None:
    """The total columns of QL-W11 and the uniques of its trait; the calls of it are files here."""
    a, b, c = UUIDS[:3]
    product.now = datetime(2026, 3, 1, 0, tzinfo=UTC)
    sync(product, 22, f"{a}\ta\n{b}\tb\n{c}\tc\n")
    devices(product, datetime(2026, 3, 1, 9, tzinfo=UTC), f"{a}\t1\n")
    devices(product, datetime(2026, 3, 5, 9, tzinfo=UTC), f"{b}\t3\n")
    devices(product, datetime(2026, 3, 9, 9, tzinfo=UTC), f"{c}\t1\n")
    product.now = datetime(2026, 3, 11, 1, tzinfo=UTC)
    rows = {}
    for day in ("2026-03-04", "2026-03-08", "2026-03-09", "2026-03-10"):
        segment, trait = figures(product, 700, day), figures(product, 1000, day)
        assert segment["counts"] == "device"
        assert of(segment, "instantUniques", None) == [0] * 6
        rows[day] = (*of(segment, "totalUniques", None, (1, 7)), *of(trait, "uniques", "device", (1, 7, 14)))
    assert rows == {
        "2026-03-04": (1, 1, 0, 1, 1),
        "2026-03-08": (2, 2, 0, 0, 1),
        "2026-03-09": (3, 3, 1, 1, 2),
        "2026-03-10": (3, 3, 0, 1, 2),
    }


# ---- a history ---------------------------------------------------------------------------------------------------


def seen_now(site: Site) -> dict[int, set[tuple[int, int]]]:
    """The profiles in each trait and segment at this instant."""
    look = Inquiry(site)
    found: dict[int, set[tuple[int, int]]] = {}
    for sid in look.traits:
        if look.traits[sid].type in ("ON_BOARDED_TRAIT", "FOLDER_TRAIT"):
            found[sid] = {
                (namespace, ordinal)
                for namespace in look.qualified.namespaces()
                for ordinal in look.qualified.members(namespace, sid)
            }
    for sid in look.audiences.segments:
        found[sid] = {(one, ordinal) for one, members in look.segment_members(sid).items() for ordinal in members}
    return found


@pytest.mark.rule("QL-1101", "QL-1103", "QL-1105", "QL-1106", "QL-1108", "UI-81", "UI-84", "QL-605")
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_windows_are_what_was_there_at_the_midnights(product: Product, seed: int) -> None:
    rng = Random(seed)
    sync(product, 60, "".join(f"{UUIDS[number]}\tk{number // 2}\n" for number in range(6)))
    sync(product, 22, "".join(f"{uuid}\tx{number}\n" for number, uuid in enumerate(UUIDS[:8])))
    midnights: dict[int, dict[int, set[tuple[int, int]]]] = {}
    realisations: dict[int, dict[int, set[tuple[int, int]]]] = {}
    start = date(2026, 3, 1)
    codes = {"1": 1000, "3": 3000, "4": 3001, "5": 3002}
    for number in range(16):
        morning = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=number)
        day = (start - date(1970, 1, 1)).days + number
        with opened(product) as site:
            product.now = morning
            midnights[day - 1] = seen_now(site)
        product.now = morning + timedelta(minutes=30)
        evaluate(product)
        today: dict[int, set[tuple[int, int]]] = {}
        for hour in sorted(rng.sample(range(1, 24), rng.choice([0, 1, 1, 2]))):
            at = morning + timedelta(hours=hour)
            with opened(product) as site:
                names = Inquiry(site).world.ids(0)
                known = {names.name(ordinal).decode(): ordinal for ordinal in range(len(UUIDS[:8]))}
            lines = ""
            for uuid in rng.sample(UUIDS[:8], 3):
                code = rng.choice([*codes, "d_unsid=1000", "d_unsid=3001"])
                lines += f"{uuid}\t{code}\n"
                if code in codes:
                    today.setdefault(codes[code], set()).add((0, known[uuid]))
            devices(product, at, lines)
            if rng.random() < 0.4:
                customer = rng.randrange(4)
                product.drop(
                    [(f"ftp_dpm_60_{int(at.timestamp())}.overwrite", f"k{customer}\t{rng.choice('12')}\n".encode())]
                )
        realisations[day] = today
    product.now = datetime(2026, 3, 17, 1, tzinfo=UTC)
    with opened(product) as site:
        look = Inquiry(site)
        folders = {sid: look.audiences.folder_members(sid) for sid in look.traits if look.audiences.folder_members(sid)}
        assert sorted(map(sorted, folders.values())) == [[3000, 3001, 3002], [3001, 3002]]
        for day in sorted(midnights)[1:]:
            populations = Populations(look, date(1970, 1, 1) + timedelta(days=day))
            traits, segments = populations.traits(), populations.segments()

            def union(
                days: int, seen: dict[int, dict[int, set[tuple[int, int]]]], *sids: int, day: int = day
            ) -> set[tuple[int, int]]:
                return {
                    profile
                    for one in range(day - days + 1, day + 1)
                    for sid in sids
                    for profile in seen.get(one, {}).get(sid, ())
                }

            for sid in (1000, 3000, 3001, 3002, 4060, *folders):
                expected = [union(days, midnights, sid) for days in RANGES]
                for kind, wanted in (("device", 0), ("cross_device", 60)):
                    assert traits[sid][kind].population == tuple(
                        sum(namespace == wanted for namespace, _ in some) for some in expected
                    ), (sid, kind, day)
                if sid != 4060:
                    uniques = tuple(len(union(days, realisations, *folders.get(sid, {sid}))) for days in RANGES)
                    assert traits[sid]["device"].uniques == uniques, (sid, day)
            for sid in (700, 701, 702, 703):
                wanted = 60 if sid == 703 else 0
                sizes = tuple(
                    sum(namespace == wanted for namespace, _ in union(days, midnights, sid)) for days in RANGES
                )
                assert segments[sid].total == sizes, (sid, day)
                assert list(sizes) == sorted(sizes)


# ---- single rules ------------------------------------------------------------------------------------------------


@pytest.mark.rule("QL-1102", "UI-75")
def test_totals_count_every_realisation_of_rule_based_traits(product: Product) -> None:
    product.now = datetime(2026, 3, 1, 0, tzinfo=UTC)
    sync(product, 22, f"{UUIDS[0]}\ta\n")
    devices(product, datetime(2026, 3, 10, 9, tzinfo=UTC), f"{UUIDS[0]}\t1\n")
    calls = [(datetime(2026, 3, 9, 10, tzinfo=UTC), 2), (datetime(2026, 3, 3, 10, tzinfo=UTC), 5)]
    with opened(product) as site:
        # facts as calls leave them: several realisations, at instants of their own
        load = next(load for load in Inquiry(site).loads if load.namespace == 0)
        rows = pa.table(
            {
                "ord": pa.array([0, 0], pa.int64()),
                "sid": pa.array([4000, 4000], pa.int32()),
                "load": pa.array([load.load] * 2, pa.int64()),
                "op": pa.array([1, 1], pa.int8()),
                "n": pa.array([n for _, n in calls], pa.int32()),
                "first_at": pa.concat_arrays([pa.array(instants(1, int(at.timestamp()))) for at, _ in calls]),
                "last_at": pa.concat_arrays([pa.array(instants(1, int(at.timestamp()))) for at, _ in calls]),
                "line": pa.array([None, None], pa.int64()),
            },
            schema=part_schema("realizations"),
        )
        site.tables.commit("realizations", site.tables.write_part("realizations", 0, rows, site.scratch("test")))
    product.now = datetime(2026, 3, 11, 1, tzinfo=UTC)
    document = figures(product, 4000, "2026-03-10")
    assert of(document, "count", "device") == [0, 2, 7, 7, 7, 7]
    assert of(document, "uniques", "device") == [0, 1, 1, 1, 1, 1]
    assert of(figures(product, 1000, "2026-03-10"), "count", "device") == [0] * 6


@pytest.mark.rule("UI-06")
def test_a_day_that_is_not_over_is_refused(product: Product) -> None:
    product.now = datetime(2026, 3, 11, 0, 0, 0, tzinfo=UTC)
    assert product.json("populations", "1000")["date"] == "2026-03-10"
    with opened(product) as site, pytest.raises(InputError, match=r"2026-03-11 is not over yet.*2026-03-10"):
        Populations(Inquiry(site), date(2026, 3, 11))
    product.run("populations", "1000", "--date", "2026-03-11", expect=(1,))
    product.run("populations", "1000", "--date", "March", expect=(2,))
    product.run("populations", "77", expect=(1,))


@pytest.mark.rule("QL-1111", "UI-86")
def test_what_did_not_exist_is_blank(product: Product) -> None:
    product.now = datetime(2026, 3, 5, 12, tzinfo=UTC)

    def more(partner: dict[str, Any]) -> None:
        partner["traits"].append(onboarded(1001, 22, "ic == 8"))
        partner["segments"].append({"sid": 710, "name": "New", "dataSourceId": 22, "segmentRule": "1001T"})

    product.apply(changed(more))
    product.now = datetime(2026, 3, 8, 12, tzinfo=UTC)
    for day, figure in (("2026-03-04", None), ("2026-03-05", 0)):
        trait, segment = figures(product, 1001, day), figures(product, 710, day)
        for kind in ("device", "cross_device"):
            for name in ("uniques", "count", "populationUniques"):
                assert of(trait, name, kind) == [figure] * 6
        for name in ("instantUniques", "totalUniques"):
            assert of(segment, name, None) == [figure] * 6
    assert "—" in product.run("populations", "710", "--date", "2026-03-04")


@pytest.mark.rule("UI-87")
def test_a_paused_segment_is_blank_from_the_next_day_on(product: Product) -> None:
    product.now = datetime(2026, 3, 1, 0, tzinfo=UTC)
    sync(product, 22, f"{UUIDS[0]}\ta\n")
    devices(product, datetime(2026, 3, 2, 9, tzinfo=UTC), f"{UUIDS[0]}\t1\n")

    def paused(partner: dict[str, Any]) -> None:
        partner["segments"][0]["status"] = "INACTIVE"

    product.now = datetime(2026, 3, 4, 9, tzinfo=UTC)
    product.apply(changed(paused))
    product.now = datetime(2026, 3, 7, 0, 40, tzinfo=UTC)
    evaluate(product)
    assert {
        day: of(figures(product, 700, f"2026-03-0{day}"), "totalUniques", None, (1, 7)) for day in (1, 2, 4, 5, 6)
    } == {1: [0, 0], 2: [1, 1], 4: [1, 1], 5: [None, None], 6: [None, None]}
    assert figures(product, 700, "2026-03-06")["live"] == {"device": 1, "cross_device": 0}

    def gone(partner: dict[str, Any]) -> None:
        del partner["segments"][0]

    file = product.home.with_name("gone.yaml")
    file.write_text(yaml.safe_dump(changed(gone)), encoding="utf-8")
    product.run("workspace", "apply", str(file), "--prune")
    product.run("populations", "700", expect=(1,))


@pytest.mark.rule("QL-1110", "UI-88")
def test_identity_breakdown(product: Product) -> None:
    product.now = datetime(2026, 3, 1, 0, tzinfo=UTC)
    sync(product, 60, f"{UUIDS[0]}\tk0\n{UUIDS[1]}\tk0\n{UUIDS[2]}\tk2\n")
    for dpid, count in ((60, 2), (61, 4), (62, 1), (63, 3), (64, 1)):
        product.now += timedelta(minutes=1)
        lines = "".join(f"k{number}\t1\n" for number in range(count)).encode()
        product.drop([(f"ftp_dpm_{dpid}_{int(product.now.timestamp())}.sync", lines)])
    product.now = datetime(2026, 3, 2, 1, tzinfo=UTC)
    # each trait has the customers of its own source; the folder's trait has those of all

    def together(partner: dict[str, Any]) -> None:
        for one in partner["traits"][5:]:
            one["folderId"] = 5

    product.apply(changed(together))
    (folder,) = (one["sid"] for one in product.json("traits") if one["name"] == "Cars Folder Trait")
    product.now = datetime(2026, 3, 3, 1, tzinfo=UTC)
    bars = figures(product, folder, "2026-03-02")["identities"]
    assert [(bar["data_source"], bar["name"], bar["population"]) for bar in bars] == [
        (61, "N61", 4),
        (63, "N63", 3),
        (60, "Card", 2),
        (None, "Others", 2),
    ]
    assert figures(product, 1000, "2026-03-02")["identities"] == []
    # k0 with two devices and k1 without any: one customer is linked to member devices
    assert figures(product, 702, "2026-03-02")["identities"] == [{"data_source": 60, "name": "Card", "population": 1}]
    assert of(figures(product, 702, "2026-03-02"), "totalUniques", None, (1,)) == [2]
    everybody = figures(product, 703, "2026-03-02")
    assert everybody["counts"] == "cross_device"
    assert of(everybody, "totalUniques", None, (1,)) == [2]
    assert everybody["identities"] == [{"data_source": 60, "name": "Card", "population": 2}]
    assert figures(product, 700, "2026-03-02")["identities"] == []


def test_devices_of_a_source_and_active_ones(product: Product) -> None:
    product.now = datetime(2026, 3, 1, 9, tzinfo=UTC)
    sync(product, 22, f"{UUIDS[0]}\ta\n{UUIDS[1]}\tb\n")
    product.now = datetime(2026, 3, 5, 9, tzinfo=UTC)
    sync(product, 22, f"{UUIDS[0]}\ta\n{UUIDS[2]}\tc\n")
    devices(product, datetime(2026, 3, 6, 9, tzinfo=UTC), f"{UUIDS[1]}\t1\n")
    product.now = datetime(2026, 7, 10, 9, tzinfo=UTC)
    by_name = {one["name"]: one["sid"] for one in product.json("traits")}

    def shown(name: str, day: str) -> tuple[list[int], list[int]]:
        document = figures(product, by_name[name], day)
        return of(document, "uniques", "device", (1, 7)), of(document, "populationUniques", "device", (1, 7))

    assert shown("Site", "2026-03-04") == ([0, 2], [2, 2])
    assert shown("Site", "2026-03-06") == ([0, 3], [3, 3])
    assert shown("Active Audience", "2026-03-06") == ([1, 3], [3, 3])
    # 120 days after 03-05 09:00 two of them are no longer active, the third a day later
    assert shown("Active Audience", "2026-07-02")[1] == [3, 3]
    assert shown("Active Audience", "2026-07-03")[1] == [1, 3]
    assert shown("Active Audience", "2026-07-04")[1] == [0, 3]


def test_overlaps_of_traits_and_segments(product: Product) -> None:
    product.now = datetime(2026, 3, 1, 9, tzinfo=UTC)
    sync(product, 22, "".join(f"{uuid}\tx{number}\n" for number, uuid in enumerate(UUIDS[:4])))
    devices(product, datetime(2026, 3, 2, 9, tzinfo=UTC), f"{UUIDS[0]}\t1,3\n{UUIDS[1]}\t1\n{UUIDS[2]}\t3\n")
    document = product.json("overlaps", "1000", "3000", "--with", "700", "--with", "1000")
    assert [(row["sid"], row["size"]) for row in document["rows"]] == [(1000, 2), (3000, 2)]
    assert [(column["sid"], column["size"]) for column in document["columns"]] == [(700, 3), (1000, 2)]
    assert document["overlaps"] == [[2, None], [2, 1]]
    assert product.json("overlaps", "1000", "3000")["overlaps"] == [[None, 1], [1, None]]
    (folder,) = (one["sid"] for one in product.json("traits") if one["name"] == "Cars Folder Trait")
    product.run("overlaps", "1000", str(folder), expect=(1,))
    product.run("overlaps", "1000", "9", expect=(1,))
