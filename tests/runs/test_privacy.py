"""Access and delete requests: what they show, what they take away, and that no trace of an erased ID is left."""

from __future__ import annotations

import copy
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from openaudience.calls.model import Call, OptOut, Origin, Pair, Realized
from openaudience.calls.store import View
from openaudience.errors import InputError
from openaudience.exports.owed import owed
from openaudience.home import Home
from openaudience.identity.ecid import to_ecid
from openaudience.identity.keys import key
from openaudience.runs.applier import Applier
from openaudience.runs.erasing import awaited, erase
from openaudience.runs.privacy import read_request
from openaudience.runs.site import Lease, Site
from oracle.driver import Product
from oracle.walkthroughs import A, B, C, D, onboarded
from runs.killing import KILLED, NOW, Server

ORG = "1231659F56A68A8B7F000101@AdobeOrg"
SITE, PEOPLE, FOREIGN = 101, 201, 301
START = datetime(2026, 1, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SECRET = "zebra-4711"
"""A user ID whose text must not be found anywhere in the end."""

WORKSPACE: dict[str, Any] = {
    "partners": [
        {
            "pid": 1,
            "name": "acme",
            "orgId": ORG,
            "dataSources": [
                {"dataSourceId": SITE, "name": "Site", "idType": "COOKIE", "outboundS2S": True},
                {"dataSourceId": PEOPLE, "name": "People", "idType": "CROSS_DEVICE", "integrationCode": "people"},
            ],
            "traits": [
                onboarded(11, SITE, "ic == 1"),
                onboarded(21, PEOPLE, "ic == 1"),
                {
                    "sid": 31,
                    "name": "Cart",
                    "traitType": "RULE_BASED_TRAIT",
                    "dataSourceId": SITE,
                    "traitRule": "c_step == cart",
                    "ttl": 120,
                },
            ],
            "segments": [
                {"sid": 91, "name": "Seen", "dataSourceId": SITE, "segmentRule": "11T"},
                {"sid": 92, "name": "Cart", "dataSourceId": SITE, "segmentRule": "31T"},
            ],
            "destinationServers": [{"serverId": 1, "name": "Folder", "type": "LOCAL", "directory": "/nowhere"}],
            "destinationFormats": [
                {
                    "formatId": 1,
                    "name": "Short",
                    "fileName": "<SYNC_MODE>_<TIMESTAMP>SPLITNUM.sync",
                    "row": '<DP_UUID> <SEGMENT_LIST;separator=","> <REMOVED_SEGMENT_LIST;separator=",">',
                }
            ],
            "destinations": [
                {
                    "destinationId": 7301,
                    "name": "Recipient",
                    "destinationType": "S2S",
                    "dataSourceId": SITE,
                    "userIdKey": SITE,
                    "serverId": 1,
                    "formatId": 1,
                    "mappings": [{"sid": 91, "startDate": "2025-12-01"}],
                }
            ],
        },
        {
            "pid": 2,
            "name": "other",
            "dataSources": [{"dataSourceId": FOREIGN, "name": "Foreign", "idType": "COOKIE"}],
            "traits": [onboarded(41, FOREIGN, "ic == 1")],
        },
    ]
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Product:
    """Somebody with a cookie ID on two devices, a customer ID and traits of two partners; and somebody else."""
    made = Product(tmp_path_factory.mktemp("privacy") / "home", None)
    made.now = START
    made.apply(WORKSPACE)
    made.drop([(f"adobe_id_0_{SITE}_1700000000.sync", f"{A}\t{SECRET}\n{B}\t{SECRET}\n{C}\tsomebody\n".encode())])
    made.drop([(f"adobe_id_0_{PEOPLE}_1700000001.sync", f"{A}\tp\n{C}\tq\n".encode())])
    made.drop([(f"adobe_id_0_{FOREIGN}_1700000002.sync", f"{A}\tf\n".encode())])
    made.now += DAY
    made.drop([(f"ftp_dpm_{SITE}_1700000003.sync", f"{SECRET}\tic=1\nsomebody\tic=1\n".encode())])
    made.drop([(f"ftp_dpm_{PEOPLE}_1700000004.sync", b"p\tic=1\nq\tic=1\n")])
    made.drop([(f"ftp_dpm_{FOREIGN}_1700000005.sync", b"f\tic=1\n")])
    call(made, A, realized=(Realized(31), Realized(31)), pairs=(Pair(SITE, SECRET, 0), Pair(PEOPLE, "p", 1)))
    call(made, C, pairs=(Pair(PEOPLE, "q", 1),))
    return made


@pytest.fixture
def product(base: Product, tmp_path: Path) -> Product:
    shutil.copytree(base.home, tmp_path / "home")
    mine = Product(tmp_path / "home", None)
    mine.now, mine.kept_receipts = base.now, list(base.kept_receipts)
    return mine


def call(product: Product, uuid: str, **said: Any) -> None:
    usual: dict[str, Any] = {"pid": 1, "uuid": uuid, "presented": True, "origin": Origin.EVENT}
    one = Call(at=int(product.now.timestamp()), **usual | said)
    with opened(product) as site:
        assert site.calls.group([lambda view: (one, "answered")]) == ["answered"]


@contextmanager
def opened(product: Product) -> Iterator[Site]:
    with Home.open(product.home, lambda: product.now) as home:
        site = Site(home, product.environment)
        try:
            yield site
        finally:
            site.close()


def opted_out(site: Site, dpid: int, ident: str) -> object:
    """What a call is told that asks now."""

    def ask(view: View) -> tuple[None, bool]:
        return None, view.opted_out(1, dpid, ident)

    (answer,) = site.calls.group([ask])
    return answer


def request(*ids: tuple[str, str, str], action: tuple[str, ...] = ("access",), org: str = ORG) -> dict[str, Any]:
    return {
        "companyContexts": [{"namespace": "imsOrgID", "value": org}],
        "users": [
            {
                "key": "David Smith",
                "action": list(action),
                "userIDs": [{"type": kind, "namespace": namespace, "value": value} for kind, namespace, value in ids],
            }
        ],
        "include": ["AudienceManager"],
        "regulation": "gdpr",
    }


def asked(product: Product, document: dict[str, Any], status: int = 0) -> dict[str, Any]:
    file = product.home.with_name("request.json")
    file.write_text("// how to ask\n\n" + json.dumps(document))
    answer = product.json("privacy", str(file), expect=(status,))
    assert isinstance(answer, dict)
    return answer


def access(product: Product, *one: str) -> dict[str, Any]:
    kind, namespace, value = one
    (user,) = asked(product, request((kind, namespace, value)))["users"]
    found: dict[str, Any] = user["ids"][0]["access"]
    return found


def export(product: Product) -> list[str]:
    """The rows of the next incremental delivery."""
    out = product.home.with_name("out")
    if not out.exists():
        out.mkdir()
        workspace = copy.deepcopy(WORKSPACE)
        workspace["partners"][0]["destinationServers"][0]["directory"] = str(out)
        product.apply(workspace)
    before = set(out.iterdir())
    product.now += timedelta(minutes=1)
    product.json("export", "7301")
    new = sorted(path for path in set(out.iterdir()) - before if path.suffix == ".sync")
    return [line for path in new for line in path.read_text().splitlines()]


def checked(product: Product) -> None:
    assert product.json("check", "--no-repair")["differences"] == []


# ---- the form of requests ------------------------------------------------------------------------------------------


@pytest.mark.rule("RT-1904")
@pytest.mark.parametrize("said", ["gdpr", "[gdpr]", "[One of gdpr]", ["gdpr"], "GDPR"])
def test_requests_are_written_in_many_ways(said: Any) -> None:
    document = {**request(), "regulation": said, "expandIds": False}
    read = read_request(f"//More information:\n  // there\n\n{json.dumps(document)}\n")
    assert (read.law, read.users[0].key, read.include) == ("gdpr", "David Smith", ["AudienceManager"])


@pytest.mark.parametrize("text", ["", "// only a comment", "[]", "{}", json.dumps({**request(), "regulation": "none"})])
def test_what_is_no_request_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        read_request(text)


@pytest.mark.rule("RT-1904")
def test_unknown_ids_fail_and_the_others_go_on(product: Product) -> None:
    ids = (
        ("namespaceId", "999", "x"),
        ("namespaceId", str(FOREIGN), "f"),
        ("namespaceId", "0", "no UUID"),
        ("standard", "FPID", A),
        ("integrationCode", "nobody", "x"),
        ("unheard-of", "0", A),
        ("namespaceId", str(SITE), ""),
        ("namespaceId", "20914", "XX"),
        ("integrationCode", "DSID_20914", A),
        ("standard", "CORE", A),
    )
    (user,) = asked(product, request(*ids), 1)["users"]
    assert [one["status"] for one in user["ids"]] == ["failed"] * 9 + ["done"]
    assert all(one["error"] for one in user["ids"][:9])
    for wrong in (request(ids[-1], org="nobody"), request(ids[-1], action=("rectify",))):
        (user,) = asked(product, wrong, 1)["users"]
        assert [one["status"] for one in user["ids"]] == ["failed"]
    left_alone = {**request(ids[-1], action=("delete",)), "include": ["Analytics"]}
    assert asked(product, left_alone)["users"] == []
    assert product.profile(A) is not None


@pytest.mark.rule("RT-1903", "RT-130")
@pytest.mark.parametrize("namespace", [("namespaceId", "20914"), ("integrationCode", "DSID_20914")])
def test_a_device_advertising_id_is_named_by_number_or_code(product: Product, namespace: tuple[str, str]) -> None:
    daid = "381e9c40-52ab-4f3d-9e08-1b6c2d3e4f50"
    product.drop([(f"adobe_id_20914_{PEOPLE}_1700000009.sync", f"{daid}\tp\n".encode())])
    found = access(product, *namespace, daid)
    (device,) = found["mapped_ids"]
    assert (device["data_source"], len(device["id"])) == (0, 38)


# ---- access --------------------------------------------------------------------------------------------------------


@pytest.mark.rule("RT-1901", "RT-1902", "RT-1906")
def test_access_by_device(product: Product) -> None:
    found = access(product, "namespaceId", "0", A)
    assert {(one["data_source"], one["id"]) for one in found["mapped_ids"]} == {(SITE, SECRET), (PEOPLE, "p")}
    (profile,) = found["profiles"]
    assert profile["uuid"] == A
    assert profile["traits"] == [
        {
            "sid": 11,
            "name": "Trait 11",
            "first_realized": "2026-01-02T12:00:00Z",
            "last_realized": "2026-01-02T12:00:00Z",
            "frequency": 1,
            "data_source": SITE,
        },
        {
            "sid": 31,
            "name": "Cart",
            "first_realized": "2026-01-02T12:00:00Z",
            "last_realized": "2026-01-02T12:00:00Z",
            "frequency": 2,
            "data_source": SITE,
        },
    ]
    assert [one["sid"] for one in profile["segments"]] == [91, 92]
    assert found["opted_out"] == {"for_partner": False, "for_all": False}
    ecid = to_ecid(ORG, A)
    for same in (("standard", "CORE", A), ("standard", "ECID", ecid), ("namespaceId", "4", ecid)):
        assert access(product, *same) == found


@pytest.mark.rule("RT-1903", "RT-107")
def test_a_code_is_that_of_the_active_data_source(product: Product) -> None:
    before = access(product, "integrationCode", "people", "p")
    old = {"name": "Old people", "idType": "CROSS_DEVICE", "integrationCode": "people", "status": "INACTIVE"}
    product.apply({"partners": [{"pid": 1, "name": "acme", "dataSources": [{"dataSourceId": 77_777, **old}]}]})
    assert access(product, "integrationCode", "people", "p") == before
    assert before["profiles"]


@pytest.mark.rule("RT-1901", "RT-1903", "RT-1906")
def test_access_by_declared_id(product: Product) -> None:
    found = access(product, "namespaceId", str(SITE), SECRET)
    assert [one["id"] for one in found["mapped_ids"]] == [A, B]
    assert [one["uuid"] for one in found["profiles"]] == [A, B]
    assert "somebody" not in json.dumps(found)
    assert '"p"' not in json.dumps(found)
    customer = access(product, "integrationCode", "people", "p")
    assert customer["mapped_ids"] == [{"data_source": 0, "id": A}]
    ((trait,),) = [one["traits"] for one in customer["profiles"]]
    assert trait["sid"] == 21
    call(product, "", presented=False, optouts=(OptOut(1, PEOPLE, "p"),))
    assert access(product, "integrationCode", "people", "p")["opted_out"] == {"for_partner": True, "for_all": False}
    assert access(product, "namespaceId", str(SITE), "unheard-of") == {
        "mapped_ids": [],
        "profiles": [],
        "opted_out": {"for_partner": False, "for_all": False},
    }


# ---- deletion ------------------------------------------------------------------------------------------------------


@pytest.mark.rule("RT-1907")
def test_a_deletion_takes_effect_at_once(product: Product) -> None:
    assert export(product) == ["somebody 91 ", f"{SECRET} 91 "]
    answer = asked(product, request(("namespaceId", str(SITE), SECRET), action=("delete", "access")))
    (one,) = answer["users"][0]["ids"]
    assert len(one["access"]["profiles"]) == 2  # access comes first
    assert answer["deleted"] == {"devices": 2, "ids": 1, "mappings": 4}
    assert answer["erased"] is None
    assert [product.profile(text) for text in (A, B, f"{SITE}:{SECRET}")] == [None, None, None]
    assert product.populations()[11] == {"device": 1, "cross_device": 0}
    assert product.populations()[31] == {"device": 0, "cross_device": 0}
    customer = product.profile(f"{PEOPLE}:p")
    assert customer is not None
    assert (customer["device"], set(customer["traits"])) == (None, {21})
    assert product.profile(C) is not None
    checked(product)
    # opted out of further collection, by calls and by files
    assert access(product, "namespaceId", str(SITE), SECRET)["opted_out"] == {"for_partner": True, "for_all": True}
    assert access(product, "namespaceId", "0", B)["opted_out"] == {"for_partner": True, "for_all": True}
    with opened(product) as site:
        assert site.calls.group([lambda view: (None, view.opted_out(1, SITE, SECRET))]) == [True]
    (receipt,) = product.drop([(f"adobe_id_0_{SITE}_1700000010.sync", f"{D}\t{SECRET}\n".encode())])
    assert receipt["reason_counts"] == {"opted_out": 1}
    # the recipient hears of it
    assert export(product) == [f"{SECRET}  91"]


@pytest.mark.rule("RT-1907", "RT-1903")
def test_a_customer_is_deleted_with_the_devices(product: Product) -> None:
    answer = asked(product, request(("integrationCode", "people", "p"), action=("delete",)))
    assert answer["deleted"] == {"devices": 1, "ids": 1, "mappings": 3}
    assert [product.profile(text) for text in (A, f"{PEOPLE}:p")] == [None, None]
    # its cookie ID is another person's as far as anybody knows
    kept = product.profile(f"{SITE}:{SECRET}")
    assert kept is not None
    assert (kept["device"], set(kept["traits"])) == (B, {11})
    assert product.populations()[21] == {"device": 0, "cross_device": 1}
    checked(product)


def traces(product: Product) -> list[str]:
    """Files of the home that hold the texts of the deleted IDs; archived files end by themselves."""
    found = []
    for path in sorted(product.home.rglob("*")):
        if path.is_file() and "archive" not in path.parts and "exports" not in path.parts:
            content = path.read_bytes()
            if SECRET.encode() in content or (A.encode() in content and path.suffix != ".yaml"):
                found.append(str(path.relative_to(product.home)))
    with opened(product) as site:
        # Parquet files are compressed
        texts = site.tables.scan("ids").select("id").collect()["id"].to_list()
        found += [text for text in texts if text in (SECRET, A, B)]
    return found


@pytest.mark.rule("RT-1908")
def test_an_erased_id_leaves_no_trace(product: Product) -> None:
    job = product.kept_receipts[3]["job"]
    sync = product.kept_receipts[0]["job"]
    assert traces(product)
    answer = asked(product, request(("namespaceId", str(SITE), SECRET), action=("delete",)))
    # no destination knew of it, so nothing had to wait
    erased = answer["erased"]
    assert erased is not None
    assert {store for store, count in erased.items() if count} == {
        "ids",
        "links",
        "realizations",
        "touches",
        "memberships",
    }
    assert erased["ids"] == 3
    with opened(product) as site:
        _, world = site.current()
        gone = {0: [world.ids(0).find_one(*key(one.encode(), site.seeds)) for one in (A, B)]}
        gone[SITE] = [world.ids(SITE).find_one(*key(SECRET.encode(), site.seeds))]
        for namespace, ordinals in gone.items():
            for table in ("realizations", "memberships", "links", "touches"):
                rows = site.tables.scan(table, namespace).filter(pl.col("ord").is_in(ordinals)).collect()
                left = rows.filter(pl.col("kind") != 2) if table == "touches" else rows
                assert left.is_empty(), table
        links = site.tables.scan("links").filter((pl.col("to_dpid") == 0) & pl.col("to_ord").is_in(gone[0]))
        assert links.collect().is_empty()
    with opened(product) as site:
        texts = site.tables.scan("ids").select("id").collect()["id"].to_list()
        assert sorted(text for text in texts if not text.startswith("\0")) == [C, "f", "p", "q", "somebody"]
        assert len(texts) == 8
        # the index of a moment ago goes with the next upkeep
        site.generations.sweep((), datetime.now(UTC) + timedelta(minutes=11))
    assert traces(product) == []
    checked(product)
    assert [product.profile(text) for text in (A, B, f"{SITE}:{SECRET}")] == [None, None, None]
    assert product.profile(f"{SITE}:somebody") is not None
    # undone and redone, and read again from its kept copy, the file does not bring it back
    for one in (job, sync):
        product.undo(one)
        checked(product)
        product.redo(one)
        checked(product)
        assert [product.profile(text) for text in (A, B, f"{SITE}:{SECRET}")] == [None, None, None]
        assert product.profile(f"{SITE}:somebody") is not None
    assert traces(product) == []
    # an index made anew knows the deleted by their keys
    for path in sorted((product.home / "production" / "index").rglob("*")):
        if path.is_file():
            path.unlink()
    product.json("check")
    checked(product)
    (receipt,) = product.drop([(f"ftp_dpm_{SITE}_1700000020.sync", f"{SECRET}\tic=1\nsomebody\tic=1\n".encode())])
    assert (receipt["reason_counts"], receipt["stored_records"]) == ({"opted_out": 1}, 1)
    assert traces(product) == []


@pytest.mark.rule("RT-1908", "RT-1905")
def test_erasing_waits_for_destinations_but_not_for_ever(product: Product) -> None:
    export(product)
    assert asked(product, request(("namespaceId", "0", C), action=("delete",)))["erased"] is not None
    assert export(product) == ["somebody  91"]
    assert asked(product, request(("namespaceId", str(SITE), SECRET), action=("delete",)))["erased"] is None
    product.now += timedelta(days=30)
    with opened(product) as site, Lease(site) as lease:
        assert awaited(site)
        told = owed(site)
        assert told
        counts = erase(site, Applier(site), lease, told)
        assert counts["ids"] > 0
        assert not awaited(site)
        assert not any(erase(site, Applier(site), lease, told).values())
    checked(product)
    # who they were cannot be said any more
    assert export(product) == []


@pytest.mark.rule("RT-1908")
def test_the_log_of_calls_is_forgotten_too(product: Product) -> None:
    asked(product, request(("namespaceId", "0", D), action=("delete",)))
    database = sqlite3.connect(product.home / "production" / "calls.db")
    try:
        assert list(database.execute("SELECT id FROM optouts")) == [(None,)]
        assert not list(database.execute("SELECT * FROM log"))
    finally:
        database.close()
    assert D.encode() not in b"".join(path.read_bytes() for path in (product.home / "production").glob("calls.db*"))


@pytest.mark.rule("RT-1907", "RT-1908", "RT-2104")
def test_a_deletion_in_beta_takes_the_ids_out_of_its_calls(product: Product) -> None:
    product.environment = "beta"
    call(product, A, pairs=(Pair(PEOPLE, "p", 1),))
    call(product, B, pairs=(Pair(PEOPLE, "q", 1),))
    call(product, D)
    answer = asked(product, request(("namespaceId", str(PEOPLE), "p"), ("namespaceId", "0", D), action=("delete",)))
    assert answer["deleted"] == {"devices": 2, "ids": 1}
    # with the call that opted them out
    assert answer["erased"] == {"calls": 3}
    with opened(product) as site:
        assert [call.uuid for _, call in site.calls.log(0, 10)] == ["", B, "", ""]
        for dpid, ident, out in ((0, A, True), (0, D, True), (PEOPLE, "p", True), (0, B, False)):
            assert opted_out(site, dpid, ident) is out, ident
    held = b"".join(path.read_bytes() for path in (product.home / "beta").glob("calls.db*"))
    assert [one.encode() in held for one in (A, B, D)] == [False, True, False]
    assert asked(product, request(("namespaceId", "0", D), action=("delete",)))["erased"] == {"calls": 1}


@pytest.mark.rule("RT-1908")
def test_hints_of_receipts_are_erased(product: Product) -> None:
    name = f"ftp_dpm_{SITE}_1700000030.sync"
    (receipt,) = product.drop([(name, f"{SECRET.upper()}\tic=1\nSomebody\tic=1\n".encode())])
    hint = {"sent": SECRET.upper(), "known": SECRET}
    assert hint in receipt["case_help"]["pairs"]
    answer = asked(product, request(("namespaceId", str(SITE), SECRET), action=("delete",)))
    assert answer["erased"]["receipts"] == 1
    kept = product.receipt(receipt["job"])["case_help"]
    assert kept == {"count": 2, "pairs": [{"sent": "Somebody", "known": "somebody"}]}
    checked(product)


@pytest.mark.rule("OP-60", "RT-1908")
@pytest.mark.parametrize(
    "point",
    [
        "drain.decided",
        "touches.committed",
        "manifest-written",
        "published",
        "realizations.committed",
        "links.moved",
        "links.committed",
        "ids.committed",
        "manifest-written:3",
        "publish.done:3",
    ],
)
def test_a_killed_request_is_finished_by_the_next(product: Product, point: str, killer: Server) -> None:
    file = product.home.with_name("request.json")
    file.write_text(json.dumps(request(("namespaceId", str(SITE), SECRET), action=("delete",))))
    assert killer.run(product.home, ["privacy", str(file)], point) == KILLED
    product.now = NOW
    product.run("privacy", str(file))
    checked(product)
    with opened(product) as site:
        assert not awaited(site)
        texts = site.tables.scan("ids").select("id").collect()["id"].to_list()
    assert sorted(text for text in texts if not text.startswith("\0")) == [C, "f", "p", "q", "somebody"]
    assert [product.profile(text) for text in (A, B, f"{SITE}:{SECRET}")] == [None, None, None]
    assert product.profile(f"{SITE}:somebody") is not None


@pytest.fixture(scope="module")
def killer() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()
