"""Clean-up: who goes at which second, what goes along, what stays; nothing brings it back (RT-311 … RT-313)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from exports.office import document
from openaudience.calls.model import Call, OptOut, Origin, Pair, Realized, Sent
from openaudience.calls.store import Work
from openaudience.catalog.ledger import LoadRow
from openaudience.home import Home
from openaudience.identity.keys import key
from openaudience.runs import cleaning
from openaudience.runs.cleaning import Cleaned, clean_due, clean_up
from openaudience.runs.site import Site
from openaudience.serve.worker import Worker
from oracle.driver import Product
from oracle.walkthroughs import A, B, C, D, onboarded
from runs.killing import KILLED, NOW, Server

GAID = "5f0c1a2b-3d4e-4f60-8a7b-9c0d1e2f3a4b"
SITE, SHOP, PEOPLE, MAIL = 101, 102, 201, 202
START = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
MONTH = 2_592_000

WORKSPACE: dict[str, Any] = {
    "partners": [
        {
            "pid": 1,
            "name": "acme",
            "dataSources": [
                {"dataSourceId": SITE, "name": "Site", "idType": "COOKIE"},
                {"dataSourceId": SHOP, "name": "Shop", "idType": "COOKIE"},
                {"dataSourceId": PEOPLE, "name": "People", "idType": "CROSS_DEVICE", "integrationCode": "people"},
                {
                    "dataSourceId": MAIL,
                    "name": "Mail",
                    "idType": "CROSS_DEVICE",
                    "integrationCode": "mail",
                    "customerProfileDataRetention": 5 * MONTH,
                },
            ],
            "mergeRules": [
                {
                    "mergeRuleDataSourceId": 8800,
                    "name": "Last login",
                    "authenticatedOption": "LAST_AUTHENTICATED",
                    "dataSourceIds": [PEOPLE],
                    "deviceOption": "DEVICE",
                }
            ],
            "traits": [onboarded(11, SITE, "ic == 1", ttl=0), onboarded(21, PEOPLE, "ic == 1", ttl=0)],
            "segments": [
                {"sid": 91, "name": "Seen", "dataSourceId": SITE, "segmentRule": "11T"},
                {
                    "sid": 92,
                    "name": "People",
                    "dataSourceId": SITE,
                    "segmentRule": "21T",
                    "mergeRuleDataSourceId": 8800,
                },
            ],
        }
    ]
}


def installed(home: Path, now: datetime, workspace: dict[str, Any] = WORKSPACE) -> Product:
    made = Product(home, None)
    made.now = now
    made.apply(workspace)
    return made


@pytest.fixture
def product(tmp_path: Path) -> Product:
    return installed(tmp_path / "home", START)


def drop(product: Product, at: datetime, name: str, text: str) -> int:
    product.now = at
    (receipt,) = product.drop([(name, text.encode())])
    assert receipt["stored_records"] > 0, receipt
    return int(receipt["job"])


def clean(product: Product, at: datetime) -> dict[str, Any]:
    product.now = at
    counts = product.json("clean")
    assert isinstance(counts, dict)
    assert product.json("check", "--no-repair")["differences"] == []
    return counts


def nothing(counts: dict[str, Any]) -> bool:
    return counts == {"devices": 0, "customers": {}, "mappings": 0}


@contextmanager
def opened(product: Product) -> Iterator[Site]:
    with Home.open(product.home, lambda: product.now) as home:
        site = Site(home, product.environment)
        try:
            yield site
        finally:
            site.close()


def asking(dpid: int, ident: str) -> Work[bool]:
    """A call that asks whether an ID is opted out."""
    return lambda view: (None, view.opted_out(1, dpid, ident))


def members(product: Product, sid: int) -> dict[str, int]:
    for one in product.json("segments"):
        if one["sid"] == sid:
            population: dict[str, int] = one["population"]
            return population
    raise AssertionError(sid)


@pytest.mark.rule("RT-311", "RT-312", "RT-313", "RT-1940")
def test_a_device_goes_120_days_after_its_first_appearance(product: Product) -> None:
    drop(product, START, f"adobe_id_0_{SITE}_1700000000.sync", f"{A}\tk\n")
    # later rows of files renew no UUID: neither an ID sync nor data
    drop(product, START + 50 * DAY, f"adobe_id_0_{SITE}_1700000001.sync", f"{A}\tk\n{B}\tb\n")
    drop(product, START + 60 * DAY, f"ftp_dpm_{SITE}_1700000002.sync", "k\tic=1\n")
    assert members(product, 91) == {"device": 1, "cross_device": 0}
    assert nothing(clean(product, START + 120 * DAY - SECOND))
    assert product.profile(A) is not None

    assert clean(product, START + 120 * DAY) == {"devices": 1, "customers": {}, "mappings": 1}
    assert product.profile(A) is None
    assert product.profile(f"{SITE}:k") is None
    assert product.profile(B) is not None
    assert product.synced(SITE) == 1
    assert product.populations()[11] == {"device": 0, "cross_device": 0}
    assert members(product, 91) == {"device": 0, "cross_device": 0}
    assert nothing(clean(product, product.now))
    # a file row for its ID finds nobody any more
    product.now += DAY
    (receipt,) = product.drop([(f"ftp_dpm_{SITE}_1700000003.sync", b"k\tic=1\n")])
    assert receipt["reason_counts"] == {"not_synced": 1}


@pytest.mark.rule("RT-312")
def test_the_present_instant_may_be_given(product: Product) -> None:
    drop(product, START, f"adobe_id_0_{SITE}_1700000000.sync", f"{A}\tk\n")
    assert nothing(product.json("clean", "--now", "2026-04-30T23:59:59Z"))
    assert product.json("clean", "--now", "2026-05-01T02:00:00+02:00")["devices"] == 1
    assert product.json("clean", "--now", "2026-05-01")["devices"] == 0
    product.run("clean", "--now", "soon", expect=(2,))


@pytest.mark.rule("RT-312", "RT-311")
def test_the_authenticated_profile_stays_when_its_device_goes(product: Product) -> None:
    drop(product, START, f"adobe_id_0_{PEOPLE}_1700000000.sync", f"{A}\tp\n")
    drop(product, START, f"ftp_dpm_{PEOPLE}_1700000001.sync", "p\tic=1\n")
    assert members(product, 92) == {"device": 1, "cross_device": 1}
    assert clean(product, START + 120 * DAY) == {"devices": 1, "customers": {}, "mappings": 1}
    kept = product.profile(f"{PEOPLE}:p")
    assert kept is not None
    assert (kept["device"], set(kept["traits"])) == (None, {21})
    assert members(product, 92) == {"device": 0, "cross_device": 1}


@pytest.mark.rule("RT-311", "RT-213", "RT-1941")
def test_a_customer_goes_after_the_retention_of_its_source(tmp_path: Path) -> None:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    product = installed(tmp_path / "home", start)
    drop(product, start, f"ftp_dpm_{PEOPLE}_1700000000.sync", "p\tic=1\nlong\tic=1\n")
    drop(product, product.now, f"adobe_id_0_{MAIL}_1700000001.sync", f"{A}\tm\n")
    # renewed by a row of any file: of data, or of an ID sync
    drop(product, product.now + 100 * DAY, f"ftp_dpm_{PEOPLE}_1700000002.sync", "long\tic=1\n")
    drop(product, product.now, f"adobe_id_0_{MAIL}_1700000003.sync", f"{B}\tm\n")
    assert clean(product, start + 250 * DAY - SECOND) == {"devices": 2, "customers": {}, "mappings": 2}
    assert clean(product, start + 250 * DAY) == {"devices": 0, "customers": {str(MAIL): 1}, "mappings": 0}
    assert nothing(clean(product, datetime(2025, 12, 20, 23, 59, 59, tzinfo=UTC)))
    assert product.profile(f"{PEOPLE}:p") is not None
    assert clean(product, datetime(2025, 12, 21, tzinfo=UTC)) == {
        "devices": 0,
        "customers": {str(PEOPLE): 1},
        "mappings": 0,
    }
    assert product.profile(f"{PEOPLE}:p") is None
    assert product.profile(f"{PEOPLE}:long") is not None
    assert members(product, 92) == {"device": 0, "cross_device": 1}


@pytest.mark.rule("RT-311")
def test_a_device_lives_as_long_as_its_advertising_id(product: Product) -> None:
    drop(product, START, "adobe_id_0_20914_1700000000.sync", f"{A}\t{GAID}\n")
    drop(product, START, f"adobe_id_0_{SITE}_1700000001.sync", f"{A}\told\n{A}\tnew\n{B}\told\n{B}\tb\n")
    drop(product, START + DAY, f"adobe_id_0_{SHOP}_1700000002.sync", f"{A}\tshop\n")
    drop(product, START + 100 * DAY, f"ftp_dpm_20914_{SITE}_1700000003.sync", f"{GAID}\tic=1\n")
    # the other device goes; of the mappings of this one, those that nobody renewed go but the newest of each source
    assert clean(product, START + 130 * DAY) == {"devices": 1, "customers": {}, "mappings": 3}
    profile = product.profile(A)
    assert profile is not None
    assert profile["ids"] == {(20914, GAID), (SITE, "new"), (SHOP, "shop")}
    assert product.profile(f"{SITE}:old") is None
    assert members(product, 91) == {"device": 1, "cross_device": 0}
    assert nothing(clean(product, START + 220 * DAY - SECOND))
    assert clean(product, START + 220 * DAY) == {"devices": 1, "customers": {}, "mappings": 3}
    assert members(product, 91) == {"device": 0, "cross_device": 0}


@pytest.mark.rule("RT-313", "IN-55")
def test_what_was_removed_does_not_come_back(product: Product) -> None:
    drop(product, START, f"adobe_id_0_{SITE}_1700000000.sync", f"{A}\tk\n{B}\tb\n")
    drop(product, START, f"adobe_id_0_{PEOPLE}_1700000001.sync", f"{A}\tp\n")
    data = drop(product, START + 110 * DAY, f"ftp_dpm_{SITE}_1700000002.sync", "k\tic=1\nb\tic=1\n")
    other = drop(product, START + 110 * DAY, f"adobe_id_0_{SITE}_1700000003.sync", f"{C}\tc\n")
    assert clean(product, START + 121 * DAY)["devices"] == 2
    for job in (data, other):
        product.undo(job)
        assert product.json("check", "--no-repair")["differences"] == []
        assert (product.profile(A), product.profile(B)) == (None, None)
        product.redo(job)
        assert product.json("check", "--no-repair")["differences"] == []
        assert (product.profile(A), product.profile(B)) == (None, None)
        assert product.profile(C) is not None
    assert members(product, 91) == {"device": 0, "cross_device": 0}
    # a file of today begins the device anew, with nothing from before
    again = drop(product, product.now + DAY, f"adobe_id_0_{SITE}_1700000004.sync", f"{A}\tk\n")
    begun = product.profile(A)
    assert begun is not None
    assert (begun["ids"], begun["traits"]) == ({(SITE, "k")}, {})
    # undone, it is gone again; redone, it is as before
    product.undo(again)
    assert product.profile(A) is None
    product.redo(again)
    assert product.profile(A) == begun
    assert product.json("check", "--no-repair")["differences"] == []
    assert clean(product, product.now + 120 * DAY - SECOND)["devices"] == 1  # the device of the other file
    assert product.profile(A) == begun
    assert clean(product, product.now + SECOND)["devices"] == 1


@pytest.mark.rule("RT-313")
def test_an_index_made_anew_is_without_them(product: Product) -> None:
    drop(product, START, f"adobe_id_0_{SITE}_1700000000.sync", f"{A}\tk\n{A}\tl\n")
    drop(
        product,
        START,
        "adobe_id_0_20914_1700000001.sync",
        f"{A}\t{GAID}\n{B}\t{GAID[:-1]}c\n",
    )
    drop(product, START + 90 * DAY, f"ftp_dpm_20914_{SITE}_1700000002.sync", f"{GAID}\tic=1\n")
    assert clean(product, START + 125 * DAY) == {"devices": 1, "customers": {}, "mappings": 2}
    before = (product.profile(A), product.populations(), members(product, 91))
    for path in sorted((product.home / "production" / "index").rglob("*")):
        if path.is_file():
            path.unlink()
    product.json("check")
    assert product.json("check", "--no-repair")["differences"] == []
    assert (product.profile(A), product.populations(), members(product, 91)) == before


def call(product: Product, at: datetime, uuid: str, **said: Any) -> None:
    """One answered call, in the log until something drains it."""
    product.now = at
    usual: dict[str, Any] = {"pid": 1, "uuid": uuid, "presented": True, "origin": Origin.EVENT}
    one = Call(at=int(at.timestamp()), **usual | said)
    with opened(product) as site:
        assert site.calls.group([lambda view: (one, "answered")]) == ["answered"]


@pytest.mark.rule("RT-311", "RT-312", "RT-1512", "RT-1941")
def test_walk_through_a10(tmp_path: Path) -> None:
    product = installed(tmp_path / "home", datetime(2024, 1, 1, tzinfo=UTC))
    drop(product, product.now, f"ftp_dpm_{PEOPLE}_1700000000.sync", "p\tic=1\n")
    for dpid, ident in ((0, A), (PEOPLE, "p")):
        call(product, product.now, "", presented=False, optouts=(OptOut(1, dpid, ident),))
    assert nothing(clean(product, datetime(2025, 12, 20, 23, 59, 59, tzinfo=UTC)))
    assert clean(product, datetime(2025, 12, 21, tzinfo=UTC))["customers"] == {str(PEOPLE): 1}
    mapped = (Pair(SITE, "k", 0), Pair(PEOPLE, "q", 1))
    call(product, START - 5 * DAY, A, pairs=mapped, realized=(Realized(11),))
    call(product, START, A)
    assert nothing(clean(product, datetime(2026, 4, 30, 23, 59, 59, tzinfo=UTC)))
    before = product.profile(A)
    assert before is not None
    assert before["ids"] == {(SITE, "k"), (PEOPLE, "q")}
    assert clean(product, datetime(2026, 5, 1, tzinfo=UTC)) == {"devices": 1, "customers": {}, "mappings": 2}
    assert (product.profile(A), product.profile(f"{SITE}:k")) == (None, None)
    with opened(product) as site:
        _, world = site.current()
        for dpid, ident in ((0, A), (PEOPLE, "p")):
            ordinal = world.ids(dpid).find_one(*key(ident.encode(), site.seeds))
            assert ordinal in world.opted_out(1, dpid)
        for dpid, ident in ((0, A), (PEOPLE, "p")):
            (out,) = site.calls.group([asking(dpid, ident)])
            assert out is True
    # the device itself comes back with its cookie, and nothing else of it
    call(product, product.now + DAY, A)
    product.json("clean")
    after = product.profile(A)
    assert after == {"device": A, "ids": set(), "traits": {}}
    assert product.json("check", "--no-repair")["differences"] == []


@pytest.mark.rule("RT-311", "RT-609")
def test_a_call_renews_a_device_even_one_that_counts_nowhere_yet(product: Product) -> None:
    drop(product, START, f"adobe_id_0_{SITE}_1700000000.sync", f"{A}\tk\n{B}\tl\n")
    call(product, START + DAY, D, pairs=(Pair(SITE, "m"),))
    call(product, START + 100 * DAY, A)
    call(product, START + 100 * DAY, C, presented=False)
    # a file row for its cookie ID reaches a device, but does not name it
    drop(product, START + 100 * DAY, f"ftp_dpm_{SITE}_1700000001.sync", "m\tic=1\n")
    assert clean(product, START + 220 * DAY - SECOND)["devices"] == 2
    assert [product.profile(one) is not None for one in (A, B, C, D)] == [True, False, True, False]
    assert clean(product, START + 220 * DAY)["devices"] == 2
    with opened(product) as site:
        _, world = site.current()
        assert not world.known()
        assert not world.provisional()


@pytest.mark.rule("QL-1601")
def test_counts_of_signals_are_forgotten(product: Product) -> None:
    for days in (0, 1):
        call(product, START + days * DAY, A, sent=(Sent("c_step", "cart", True),))
    clean(product, START + 45 * DAY + timedelta(hours=1))
    with opened(product) as site:
        assert [one.hour for one in site.calls.signals()] == [int((START + DAY).timestamp()) // 3600]


@pytest.mark.rule("RT-2104")
def test_calls_of_beta_go_by_their_age_and_number(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    product.environment = "beta"
    for days in (0, 1, 100, 101, 102):
        call(product, START + days * DAY, A, sent=(Sent("c_step", "cart", True),))
    product.now = START + 121 * DAY
    life: Any = Told()
    with opened(product) as site:
        assert Cleaned() == clean_up(site, int((START + 120 * DAY).timestamp()))
        assert [number for number, _ in site.calls.log(0, 10)] == [2, 3, 4, 5]
        Worker(life, site).step()
        assert [number for number, _ in site.calls.log(0, 10)] == [3, 4, 5]
        monkeypatch.setattr(cleaning, "MOST_BETA_CALLS", 2)
        clean_up(site)
        assert [number for number, _ in site.calls.log(0, 10)] == [4, 5]
    assert life.said == []
    # they had their time to be looked at
    assert [one["count"] for one in product.json("signals", "--days", "45")] == [1]


@pytest.mark.rule("RT-312")
def test_it_is_due_once_a_week(product: Product) -> None:
    product.now = START + timedelta(hours=12)
    with opened(product) as site:
        with site.reading() as session:
            assert clean_due(site, session)
        product.json("clean")
        for day in range(7):
            product.now = START + day * DAY + timedelta(hours=12)
            with site.reading() as session:
                assert not clean_due(site, session)
        product.now = START + 7 * DAY
        with site.reading() as session:
            assert not clean_due(site, session)
        product.now += timedelta(minutes=31)
        with site.reading() as session:
            assert clean_due(site, session)


class Told:
    """What a part of the server is given, as far as a worker needs it."""

    stopping = False

    def __init__(self) -> None:
        self.log = self
        self.said: list[tuple[str, dict[str, Any]]] = []

    def bind(self, **figures: Any) -> Told:
        return self

    def info(self, event: str, **figures: Any) -> None:
        self.said.append((event, figures))


@pytest.mark.rule("RT-312")
def test_the_worker_cleans_up(product: Product) -> None:
    drop(product, START, f"adobe_id_0_{SITE}_1700000000.sync", f"{A}\tk\n{B}\tl\n")
    product.now = START + 120 * DAY + timedelta(hours=1)
    with opened(product) as site:
        # who calls at the last moment stays, although no drain was due
        call(product, product.now, B)
        life: Any = Told()
        worker = Worker(life, site)
        worker.step()
        assert ("clean-up", {"devices": 1, "customers": {}, "mappings": 1}) in life.said
        life.said.clear()
        worker.step()
        assert not life.said
    assert (product.profile(A), product.profile(B) is not None) == (None, True)


@pytest.mark.rule("RT-312")
def test_the_facts_say_who_went(product: Product) -> None:
    drop(product, START, f"adobe_id_0_{SITE}_1700000000.sync", f"{A}\tk\n")
    clean(product, START + 120 * DAY)
    rows = product.json(
        "sql", "SELECT l.kind AS what, t.kind, t.dpid, t.ord FROM touches t JOIN loads l ON l.load = t.load"
    )
    assert rows == [{"what": "gone", "kind": 2, "dpid": 0, "ord": 0}]
    with opened(product) as site, site.reading() as session:
        kinds = [row.kind for row in session.query(LoadRow).order_by(LoadRow.position)]
    assert kinds == ["id_sync", "gone"]


@pytest.mark.rule("RT-312", "RT-1508")
def test_destinations_hear_of_it_in_their_next_delivery(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    workspace = document({})
    workspace["partners"][0]["destinationServers"][0]["directory"] = str(out)
    product = installed(tmp_path / "home", START, workspace)
    drop(product, START, "adobe_id_0_52011_1700000000.sync", f"{A}\tk\n")
    drop(product, START + 100 * DAY, "adobe_id_0_52011_1700000001.sync", f"{B}\tl\n")
    drop(product, START + 100 * DAY, "ftp_dpm_52011_1700000002.sync", "k\td_sid=8001\nl\td_sid=8001\n")
    product.json("export", "7301")
    assert clean(product, START + 120 * DAY) == {"devices": 1, "customers": {}, "mappings": 1}
    product.json("export", "7301")
    first, second = sorted(path for path in out.iterdir() if path.suffix == ".sync")
    assert first.read_text() == "k 3100 \nl 3100 \n"
    assert second.read_text() == "k  3100\n"


@pytest.fixture(scope="module")
def killer() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.mark.rule("OP-60", "RT-313")
def test_a_killed_clean_up_is_finished_by_the_next(tmp_path: Path, killer: Server) -> None:
    begun = installed(tmp_path / "begun", NOW - 130 * DAY)
    drop(begun, begun.now, f"adobe_id_0_{SITE}_1700000000.sync", f"{A}\tk\n")
    drop(begun, begun.now, f"ftp_dpm_{SITE}_1700000001.sync", "k\tic=1\n")
    for number, point in enumerate(("judged", "touches.committed", "manifest-written", "decided", "published")):
        home = Path(shutil.copytree(begun.home, tmp_path / str(number)))
        assert killer.run(home, ["clean"], point) == KILLED
        product = Product(home, None)
        product.now = NOW
        expected = {"devices": 1, "customers": {}, "mappings": 1}
        if point in ("decided", "published"):
            expected = {"devices": 0, "customers": {}, "mappings": 0}
        assert clean(product, NOW) == expected, point
        assert product.profile(A) is None
        assert members(product, 91) == {"device": 0, "cross_device": 0}
