"""Status, definitions and time: what changes memberships besides files (QL-708 … QL-716, QL-904 … QL-907)."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from openaudience.home import Home
from openaudience.runs.applier import Applier
from openaudience.runs.membership import daily_due, evaluate_all
from openaudience.runs.service import finish_unfinished
from openaudience.runs.site import Lease, Site
from oracle.driver import Product
from oracle.walkthroughs import onboarded

A, B, C = "1" * 38, "2" * 38, "3" * 38
START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def workspace(*segments: dict[str, Any], folder: int = 0) -> dict[str, Any]:
    return {
        "partners": [
            {
                "pid": 1,
                "name": "acme",
                "dataSources": [{"dataSourceId": 101, "name": "Site", "idType": "COOKIE"}],
                "folders": {"traits": [{"folderId": 1, "name": "Cars"}, {"folderId": 2, "name": "Boats"}]},
                "traits": [
                    onboarded(501, 101, 'ic == "10"', ttl=30),
                    onboarded(502, 101, 'ic == "20"', folderId=folder),
                ],
                "segments": list(segments),
            }
        ]
    }


def segment(sid: int, rule: str, status: str = "ACTIVE") -> dict[str, Any]:
    return {"sid": sid, "name": f"S{sid}", "dataSourceId": 101, "segmentRule": rule, "status": status}


@pytest.fixture
def product(tmp_path: Path) -> Product:
    product = Product(tmp_path / "home", workspace(segment(700, "501T"), segment(701, "501T AND NOT 502T")))
    drop(product, "adobe_id_0_101_1600000000.sync", f"{A}\ta\n{B}\tb\n{C}\tc\n")
    return product


def drop(product: Product, name: str, text: str) -> None:
    (receipt,) = product.drop([(name, text.encode())])
    assert receipt["status"] == "processed"


@contextmanager
def opened(product: Product) -> Iterator[Site]:
    with Home.open(product.home, clock=lambda: product.now) as home:
        site = Site(home, "production")
        try:
            yield site
        finally:
            site.close()


def members(product: Product, sid: int) -> set[str]:
    with opened(product) as site:
        finish_unfinished(site)
        _, world = site.current()
        return {world.ids(0).name(ordinal).decode()[0] for ordinal in world.members(0).members(sid)}


def evaluate(product: Product) -> None:
    with opened(product) as site, Lease(site) as lease:
        evaluate_all(site, lease)


def history(product: Product, sid: int) -> list[tuple[str, int, datetime]]:
    """Joins and leaves of a segment as outside readers see them."""
    rows = product.json(
        "sql",
        "SELECT i.id, m.op, m.at FROM memberships m JOIN ids i ON i.ord = m.ord AND i.dpid = m.dpid "
        f"WHERE m.sid = {sid}",
    )
    return sorted((row["id"][0], row["op"], datetime.fromisoformat(row["at"])) for row in rows)


@pytest.mark.rule("QL-901", "QL-907", "IN-90")
def test_joins_and_leaves_are_written_down(product: Product) -> None:
    drop(product, "ftp_dpm_101_1700000000.sync", "a\t10\nb\t10,20\n")
    assert (members(product, 700), members(product, 701)) == ({"1", "2"}, {"1"})
    product.now += timedelta(hours=1)
    drop(product, "ftp_dpm_101_1700000001.sync", "a\t20\n")
    assert members(product, 701) == set()
    joined, left = START, START + timedelta(hours=1)
    assert history(product, 701) == [("1", -1, left), ("1", 1, joined)]
    # a renewal is no change of a membership
    product.now += timedelta(hours=1)
    drop(product, "ftp_dpm_101_1700000002.sync", "a\t10\n")
    assert history(product, 700) == [("1", 1, joined), ("2", 1, joined)]


@pytest.mark.rule("QL-514", "QL-515", "QL-816")
def test_time_alone_ends_memberships_in_the_daily_run(product: Product) -> None:
    drop(product, "ftp_dpm_101_1700000000.sync", "a\t10\n")
    product.now = START + timedelta(days=29, hours=23, minutes=59)
    evaluate(product)
    assert members(product, 700) == {"1"}
    product.now = START + timedelta(days=30)
    evaluate(product)
    assert members(product, 700) == set()


@pytest.mark.rule("QL-904")
def test_the_daily_run_is_due_once_a_day_from_its_time_on(product: Product) -> None:
    def due() -> bool:
        with opened(product) as site, site.reading() as session:
            return daily_due(site, session)

    def run() -> None:
        with opened(product) as site, Lease(site) as lease:
            Applier(site).daily(lease)

    assert due()
    run()
    assert not due()
    product.now = datetime(2026, 3, 3, 0, 29, 59, tzinfo=UTC)
    assert not due()
    product.now = datetime(2026, 3, 3, 0, 30, tzinfo=UTC)
    assert due()
    run()
    assert not due()


@pytest.mark.rule("QL-708", "QL-709", "QL-713")
def test_a_paused_segment_stands_still(product: Product) -> None:
    drop(product, "ftp_dpm_101_1700000000.sync", "a\t10\nb\t10\n")
    product.apply(workspace(segment(700, "501T", "PAUSED"), segment(701, "501T AND NOT 502T")))
    product.now += timedelta(days=1)
    drop(product, "ftp_dpm_101_1700000001.sync", "a\td_unsid=501\nc\t10\n")
    evaluate(product)
    assert members(product, 700) == {"1", "2"}
    assert members(product, 701) == {"2", "3"}
    product.apply(workspace(segment(700, "501T"), segment(701, "501T AND NOT 502T")))
    assert members(product, 700) == {"2", "3"}


@pytest.mark.rule("QL-709", "QL-906")
def test_a_changed_rule_holds_for_everybody_and_a_deleted_segment_for_nobody(product: Product) -> None:
    drop(product, "ftp_dpm_101_1700000000.sync", "a\t10\nb\t20\n")
    product.apply(workspace(segment(700, "501T OR 502T"), segment(701, "502T")))
    assert (members(product, 700), members(product, 701)) == ({"1", "2"}, {"2"})
    product.now += timedelta(minutes=1)
    file = product.home.with_name("pruned.yaml")
    file.write_text(yaml.safe_dump(workspace(segment(701, "502T"))))
    product.run("workspace", "apply", "--prune", str(file))
    assert (members(product, 700), members(product, 701)) == (set(), {"2"})
    assert sorted((who, op) for who, op, _ in history(product, 700)) == [("1", -1), ("1", 1), ("2", -1), ("2", 1)]
    assert product.json("check")["good"]


@pytest.mark.rule("QL-312", "QL-513")
def test_a_shorter_ttl_ends_memberships(product: Product) -> None:
    drop(product, "ftp_dpm_101_1700000000.sync", "a\t10\n")
    product.now += timedelta(days=10)
    shorter = workspace(segment(700, "501T"), segment(701, "501T AND NOT 502T"))
    shorter["partners"][0]["traits"][0]["ttl"] = 5
    product.apply(shorter)
    assert members(product, 700) == set()


@pytest.mark.rule("OP-43")
def test_what_an_early_version_took_as_a_rule_is_no_segment_and_stands_in_nobodys_way(product: Product) -> None:
    """A home from before segments were judged: its segments are judged at the first command, unreadable ones never."""
    with closing(sqlite3.connect(product.home / "catalog.db")) as catalog, catalog:
        bad = "json_set(document, '$.segmentRule', '501T AND (')"
        catalog.execute(f"UPDATE documents SET document = {bad} WHERE kind = 'segments' AND number = 701")
        catalog.execute("DELETE FROM evaluated")
        catalog.execute("DELETE FROM counters WHERE name IN ('evaluated', 'configuration')")
        for table in ("evaluations", "evaluated", "exports", "export_files", "export_baselines", "export_schedules"):
            catalog.execute(f"DROP TABLE {table}")
        for column in ("pid", "first", "evaluation"):
            catalog.execute(f"ALTER TABLE loads DROP COLUMN {column}")
        catalog.execute("UPDATE alembic_version SET version_num = '0004'")
    drop(product, "ftp_dpm_101_1700000000.sync", "a\t10\n")
    assert (members(product, 700), members(product, 701)) == ({"1"}, set())
    assert {one["sid"]: one["population"]["device"] for one in product.json("segments")} == {700: 1, 701: 0}
    file = product.home.with_name("again.yaml")
    file.write_text(yaml.safe_dump(workspace(segment(700, "501T"), segment(701, "501T"))))
    product.run("workspace", "apply", str(file))
    assert members(product, 701) == {"1"}


def test_members_survive_a_lost_index(product: Product) -> None:
    drop(product, "ftp_dpm_101_1700000000.sync", "a\t10\nb\t10,20\n")
    shutil.rmtree(product.home / "production" / "index")
    report = (
        product.json("check", "--repair") if "--repair" in product.run("check", "--help") else product.json("check")
    )
    assert report
    assert (members(product, 700), members(product, 701)) == ({"1", "2"}, {"1"})
