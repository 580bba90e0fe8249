"""After many small files the tables are packed; nothing that anybody can ask for changes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from openaudience.home import Home
from openaudience.runs import packing, service
from openaudience.runs.packing import dead_loads, pack
from openaudience.runs.site import Lease, Site
from openaudience.runs.world import load_name
from openaudience.store.schemas import SCHEMAS
from oracle.driver import Product
from oracle.walkthroughs import U1, U2, onboarded

WORKSPACE: dict[str, Any] = {
    "partners": [
        {
            "pid": 1,
            "name": "acme",
            "dataSources": [{"dataSourceId": 101, "name": "Site", "idType": "COOKIE"}],
            "traits": [onboarded(11, 101, "ic == 1"), onboarded(12, 101, "ic == 2", ttl=5)],
        }
    ]
}
FIRST = 1_700_000_000
COUNT = 36


def drop(product: Product, number: int) -> int:
    product.now += timedelta(minutes=1)
    text = f'k\t"ic"="{1 + number % 2}"\nj\t"ic"="2"\n'
    job = product.drop([(f"ftp_dpm_101_{FIRST + number}.sync", text.encode())])[0]["job"]
    assert isinstance(job, int)
    return job


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Product:
    product = Product(tmp_path_factory.mktemp("packing") / "home", WORKSPACE)
    product.drop([("adobe_id_0_101_1600000000.sync", f"{U1}\tk\n{U2}\tj\n".encode())])
    with pytest.MonkeyPatch.context() as patch:
        # an ingest packs by itself; here the files are wanted as the runs left them
        patch.setattr(service, "pack", lambda site, lease: 0)
        for number in range(COUNT):
            drop(product, number)
    return product


@pytest.fixture
def product(sample: Product, tmp_path: Path) -> Product:
    shutil.copytree(sample.home, tmp_path / "home")
    copy = Product(tmp_path / "home", None)
    copy.now = sample.now
    return copy


@contextmanager
def opened(product: Product) -> Iterator[Site]:
    with Home.open(product.home, lambda: product.now) as home:
        site = Site(home, product.environment)
        try:
            yield site
        finally:
            site.close()


def packed(product: Product) -> int:
    with opened(product) as site, Lease(site) as lease:
        return pack(site, lease)


def rows(product: Product) -> dict[str, pl.DataFrame]:
    with opened(product) as site:
        frames = {name: site.tables.scan(name).collect() for name in SCHEMAS}
    return {name: frame.sort(frame.columns) for name, frame in frames.items()}


def files(product: Product, table: str) -> int:
    with opened(product) as site:
        return len(site.tables.files(table))


def answers(product: Product) -> list[Any]:
    return [
        product.json("traits"),
        product.json("jobs"),
        *(product.json(command, f"101:{who}", *more) for who in "kj" for command, more in ASKED),
    ]


ASKED: tuple[tuple[str, tuple[str, ...]], ...] = (("profile", ()), ("why", ("11",)), ("why", ("12",)))


@pytest.mark.rule("OP-22")
def test_packing_changes_files_and_no_rows(product: Product) -> None:
    before, said = rows(product), answers(product)
    assert packed(product) > COUNT
    assert [files(product, table) for table in ("realizations", "touches", "loads")] == [1, 1, 1]
    after = rows(product)
    assert all(before[name].equals(after[name]) for name in SCHEMAS)
    assert answers(product) == said
    assert product.json("check", "--no-repair")["differences"] == []
    # a second time there is nothing to do
    assert packed(product) == 0


@pytest.mark.rule("OP-22", "IN-55")
def test_life_goes_on_after_packing(product: Product) -> None:
    packed(product)
    last = drop(product, COUNT)
    before = answers(product)
    product.undo(last)
    product.undo(COUNT)
    product.redo(COUNT)
    product.redo(last)
    assert product.json("traits") == before[0]
    assert product.json("check", "--no-repair")["differences"] == []


def test_a_few_files_stay_as_they_are(product: Product) -> None:
    assert packed(product) > 0
    for number in range(5):
        drop(product, COUNT + number)
    assert packed(product) == 0
    assert files(product, "realizations") == 6


@pytest.mark.rule("IN-55", "IN-06")
def test_bitmaps_go_when_no_redo_can_bring_them_back(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MOST_DEAD", 0)
    product.undo(COUNT)
    with opened(product) as site:
        (load,) = {int(name.removeprefix("load/")) for name in site.current()[1].namespaces("load")} - {
            load.load for load in site.loads()
        }
        assert dead_loads(site) == []
    packed(product)
    product.redo(COUNT)
    product.undo(COUNT)
    product.now += timedelta(days=31)
    populations = product.populations()
    with opened(product) as site:
        assert dead_loads(site) == [load]
    packed(product)
    with opened(product) as site:
        assert not site.current()[1].layers.get(load_name(load))
        assert len(site.current()[1].namespaces("load")) == COUNT - 1
    product.run("redo", str(COUNT), expect=(1,))
    # the new generation is as of now, so what expired is out of it
    assert product.populations() == populations
    assert populations[12] == {"device": 0, "cross_device": 0}
    assert product.json("check", "--no-repair")["differences"] == []


@pytest.mark.rule("IN-55")
def test_bitmaps_of_replaced_attempts_go_at_once(product: Product) -> None:
    product.undo(1)
    product.redo(1)
    with opened(product) as site:
        # every file matched nothing without its mappings, and was run again when they came back
        assert len(dead_loads(site)) == 2 * COUNT
    before = answers(product)
    packed(product)
    with opened(product) as site:
        assert len(site.current()[1].namespaces("load")) == COUNT
    assert answers(product) == before
    assert product.json("check", "--no-repair")["differences"] == []
    product.undo(1)
    product.redo(1)
    assert product.json("check", "--no-repair")["differences"] == []


def test_beta_has_nothing_to_pack(product: Product) -> None:
    product.environment = "beta"
    assert packed(product) == 0


@pytest.mark.rule("OP-22")
def test_an_ingest_packs_by_itself(product: Product) -> None:
    drop(product, COUNT)
    assert files(product, "touches") == 1
