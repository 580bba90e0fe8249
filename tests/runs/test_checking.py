"""`check` finds whatever is not as the facts say, and makes the index anew; answers stay what they were."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyroaring import BitMap
from sqlalchemy import select

from openaudience.catalog.ledger import FileRow, LoadRow, ReceiptRow, RunRow
from openaudience.home import Home
from openaudience.identity.mappings import layer_of
from openaudience.profiles.index import TOUCHED, joined_key, left_key
from openaudience.runs.checking import check
from openaudience.runs.site import Site
from openaudience.runs.world import Draft
from openaudience.store.arrays import read_arrays, write_arrays
from oracle.driver import Product
from oracle.generators import random_steps, random_world
from oracle.histories import take
from oracle.installation import ModelInstallation
from oracle.walkthroughs import U1, U2, U3, onboarded

WORKSPACE: dict[str, Any] = {
    "partners": [
        {
            "pid": 1,
            "name": "acme",
            "dataSources": [
                {"dataSourceId": 101, "name": "Site", "idType": "COOKIE"},
                {"dataSourceId": 201, "name": "People", "idType": "CROSS_DEVICE", "integrationCode": "people"},
            ],
            "traits": [
                onboarded(11, 101, "ic == 1", ttl=30),
                onboarded(12, 101, "ic == 2"),
                onboarded(21, 201, "ic == 1"),
            ],
        }
    ]
}
FILES = [
    ("adobe_id_0_101_1600000000.sync", f"{U1}\tk\n{U2}\tJ\n{U3}\tj\n".encode()),
    ("adobe_id_0_201_1600000001.sync", f"{U1}\tp\n{U2}\tq\n".encode()),
    ("ftp_dpm_101_1700000000.sync", b'k\t"ic"="1"\nJ\t"ic"="1","ic"="2"\nj\t"ic"="2"\n'),
    ("ftp_dpm_101_1700000001.overwrite", b'k\t"ic"="2"\n'),
    ("ftp_dpm_101_1700000002.sync", b'J\td_unsid=12\nnobody\t"ic"="1"\n'),
    ("ftp_dpm_201_1700000003.sync", b'p\t"ic"="1"\nr\t"ic"="1"\n'),
    ("ftp_dpm_201_1700000004.sync", b'q\t"ic"="1"\n'),
]
EVERYBODY = ("101:k", "101:J", "101:j", "201:p", "201:q", "201:r")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Product:
    """A home with every kind of file, the last one withdrawn."""
    product = Product(tmp_path_factory.mktemp("checking") / "home", WORKSPACE)
    job = 0
    for file in FILES:
        product.now += timedelta(minutes=1)
        job = product.drop([file])[0]["job"]
    product.undo(job)
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


def answers(product: Product) -> list[Any]:
    return [product.json("traits"), product.json("datasources"), *(product.json("profile", one) for one in EVERYBODY)]


def said(product: Product, *options: str, status: int) -> dict[str, Any]:
    document = product.json("check", *options, expect=(status,))
    assert isinstance(document, dict)
    assert document["good"] is (status == 0)
    return document


def parts(document: dict[str, Any]) -> set[str]:
    return {difference["part"] for difference in document["differences"]}


@pytest.mark.rule("OP-22")
def test_what_the_product_wrote_is_right(product: Product) -> None:
    document = said(product, "--no-repair", status=0)
    assert document["differences"] == []
    checked = document["checked"]
    assert (checked["ID namespaces"], checked["IDs"], checked["mappings"], checked["known devices"]) == (3, 9, 5, 3)
    assert (checked["loads"], checked["qualifications"], checked["receipts"]) == (5, 5, 7)
    before = answers(product)
    said(product, status=0)
    assert answers(product) == before


@pytest.mark.rule("OP-22", "QL-503")
def test_expiry_since_the_index_was_written_is_no_difference(product: Product) -> None:
    product.now += timedelta(days=31)
    assert said(product, status=0)["differences"] == []
    assert product.populations()[11] == {"device": 0, "cross_device": 0}


# ---- damage ------------------------------------------------------------------------------------------------------


def files_of(product: Product, component: str) -> list[Path]:
    with opened(product) as site:
        generation, _ = site.current()
        return [site.generations.path(file) for file in generation.layers[component]]


def redrafted(product: Product, change: Callable[[Draft], object]) -> None:
    """Publishes a generation that says something else."""
    with opened(product) as site:
        base, _ = site.current()
        draft = Draft(site.generations, base)
        change(draft)
        site.generations.write(draft.generation(base.as_of, base.table_versions))
        site.generations.publish(draft.number)


def without_index(product: Product) -> None:
    shutil.rmtree(product.home / "production" / "index")


def without_pointer(product: Product) -> None:
    (product.home / "production" / "index" / "CURRENT").unlink()


def pointer_damaged(product: Product) -> None:
    (product.home / "production" / "index" / "CURRENT").write_bytes(b"\xff\x00")


def manifest_damaged(product: Product) -> None:
    for path in (product.home / "production" / "index").glob("gen-*.json"):
        path.write_bytes(path.read_bytes()[:40])


def decided_and_lost(product: Product) -> None:
    """The power went between the decision and the publication, and the index is gone."""
    without_index(product)
    with opened(product) as site, site.writing() as session:
        last = session.scalars(select(RunRow).order_by(RunRow.run.desc())).first()
        assert last is not None
        last.state = "decided"


@pytest.mark.rule("OP-22")
@pytest.mark.parametrize(
    "damage", [without_index, without_pointer, pointer_damaged, manifest_damaged, decided_and_lost]
)
def test_an_index_that_is_lost_is_made_anew(product: Product, damage: Callable[[Product], None]) -> None:
    before = answers(product)
    damage(product)
    # working on no index would give old numbers to new IDs
    product.run("ingest", str(product.write([FILES[3]])[0]), expect=(3,))
    assert "index" in parts(said(product, "--no-repair", status=1))
    document = said(product, status=0)
    expected = {"index", "ids/0", "ids/101", "ids/201", "links/101-0", "links/201-0", "known", "traits/0", "traits/201"}
    assert expected <= parts(document)
    product.run("jobs")
    assert said(product, "--no-repair", status=0)["differences"] == []
    assert answers(product) == before
    product.redo(7)
    assert (product.profile("201:q") or {})["traits"].keys() == {21}


@pytest.mark.rule("OP-22")
def test_a_refold_that_waits_is_done_by_the_rebuilding(product: Product) -> None:
    product.apply(with_ttl(1))
    product.apply(WORKSPACE)
    with opened(product) as site, site.writing() as session:
        site.catalog.settle_refolds(site.catalog.refolds(session), session)
    without_index(product)
    file = product.home.with_name("changed.yaml")
    file.write_text(str(with_ttl(0)).replace("'", '"'), encoding="utf-8")
    product.run("workspace", "apply", str(file), expect=(0, 3))
    said(product, status=0)
    with opened(product) as site:
        assert site.catalog.refolds() == frozenset()
    assert said(product, "--no-repair", status=0)["differences"] == []


def with_ttl(days: int) -> dict[str, Any]:
    (partner,) = WORKSPACE["partners"]
    first, *others = partner["traits"]
    return {"partners": [{**partner, "traits": [{**first, "ttl": days}, *others]}]}


def cut(component: str) -> Callable[[Product], None]:
    def damage(product: Product) -> None:
        for path in files_of(product, component):
            path.write_bytes(path.read_bytes()[:-3])

    return damage


def gone(component: str) -> Callable[[Product], None]:
    def damage(product: Product) -> None:
        for path in files_of(product, component):
            path.unlink()

    return damage


def spoiled(component: str) -> Callable[[Product], None]:
    """Bytes in the middle and at the end are others; sizes and headers stay."""

    def damage(product: Product) -> None:
        for path in files_of(product, component):
            content = bytearray(path.read_bytes())
            content[-1] ^= 0x55
            content[-9] ^= 0x15
            path.write_bytes(content)

    return damage


def other_keys(product: Product) -> None:
    for path in files_of(product, "ids/0"):
        arrays = read_arrays(path)
        write_arrays(path, {**arrays, "k2": arrays["k2"] + np.uint64(1)})


def redraft(change: Callable[[Draft], object]) -> Callable[[Product], None]:
    return lambda product: redrafted(product, change)


def fewer_mappings(draft: Draft) -> None:
    customer, device, first, last = draft.links(101).pairs()
    draft.put_links(101, 0, layer_of(customer[1:], device[1:], first[1:], last[1:]), replace=True)


def other_times(draft: Draft) -> None:
    customer, device, first, last = draft.links(101).pairs()
    draft.put_links(101, 0, layer_of(customer, device, first, last + 1), replace=True)


def more_mappings(draft: Draft) -> None:
    one = np.array([1], np.uint32)
    draft.put_links(900, 0, layer_of(one, one, one.astype(np.int64), one.astype(np.int64)), replace=True)


def other_load(draft: Draft) -> None:
    bitmaps = draft.load(3)
    assert bitmaps is not None
    changed = {key: bitmaps.get(key) for key in bitmaps.keys()}  # noqa: SIM118 (a file, no mapping)
    changed[TOUCHED] = changed[TOUCHED] | BitMap([77])
    draft.put_load(3, changed)


@pytest.mark.rule("OP-22")
@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("ids/101", cut("ids/101")),
        ("ids/101", gone("ids/101")),
        ("ids/101", spoiled("ids/101")),
        ("ids/0", spoiled("ids/0")),
        ("ids/0", other_keys),
        ("ids/0", redraft(lambda draft: draft.set_count(0, 2))),
        ("ids/900", redraft(lambda draft: draft.set_count(900, 1))),
        ("links/101-0", cut("links/101-0")),
        ("links/201-0", spoiled("links/201-0")),
        ("links/101-0", redraft(fewer_mappings)),
        ("links/101-0", redraft(other_times)),
        ("links/900-0", redraft(more_mappings)),
        ("known", gone("known")),
        ("known", redraft(lambda draft: draft.put_known(BitMap([2]), replace=True))),
        ("traits/0", gone("traits/0")),
        ("traits/0", redraft(lambda draft: draft.put_traits(0, {joined_key(11): BitMap([2])}))),
        ("traits/0", redraft(lambda draft: draft.put_traits(0, {left_key(12): BitMap([2])}))),
        ("traits/900", redraft(lambda draft: draft.put_traits(900, {joined_key(11): BitMap([2])}))),
        ("load/3", cut("load/3")),
        ("load/3", redraft(other_load)),
        ("load/4", redraft(lambda draft: draft.drop("load/4"))),
        ("load/7", redraft(lambda draft: draft.drop("load/7"))),
        ("load/99", redraft(lambda draft: draft.put_load(99, {TOUCHED: BitMap([1])}))),
    ],
)
def test_a_wrong_component_is_named_and_made_anew(
    product: Product, part: str, damage: Callable[[Product], None]
) -> None:
    before = answers(product)
    damage(product)
    first = said(product, "--no-repair", status=1)
    assert parts(first) == set(part.split())
    assert not any(difference["repaired"] for difference in first["differences"])
    # telling alone changes nothing
    assert said(product, "--no-repair", status=1)["differences"] == first["differences"]
    assert parts(said(product, status=0)) == set(part.split())
    assert said(product, "--no-repair", status=0)["differences"] == []
    assert answers(product) == before


@pytest.mark.rule("OP-22")
def test_wrong_bitmaps_of_a_load_do_not_mislead_expiry(product: Product) -> None:
    redrafted(product, lambda draft: draft.put_load(3, {TOUCHED: BitMap([1])}))
    product.now += timedelta(days=31)
    # what expired is told from the facts, so the index itself is found right
    assert parts(said(product, "--no-repair", status=1)) == {"load/3"}
    assert parts(said(product, status=0)) == {"load/3"}
    assert product.populations()[11] == {"device": 0, "cross_device": 0}
    assert said(product, "--no-repair", status=0)["differences"] == []


@pytest.mark.rule("OP-22", "QL-503")
def test_what_is_made_anew_is_as_of_now_in_all_parts(product: Product) -> None:
    redrafted(product, lambda draft: draft.put_known(BitMap([2]), replace=True))
    product.now += timedelta(days=31)
    assert parts(said(product, status=0)) == {"known"}
    assert product.populations()[11] == {"device": 0, "cross_device": 0}
    assert said(product, "--no-repair", status=0)["differences"] == []


@pytest.mark.rule("OP-22")
def test_the_table_of_loads_follows_the_catalog(product: Product) -> None:
    with opened(product) as site:
        files = site.tables.files("loads")
        named = [set(site.tables.frame("loads", [file]).collect()["load"]) for file in files]
        # what an undo and a redo said of a load is in other files, too
        alone = next(
            place
            for place, some in enumerate(named)
            if not any(some & other for other in named[:place] + named[place + 1 :])
        )
        site.tables.replace("loads", [], [files[alone]])
    (part,) = parts(said(product, "--no-repair", status=1))
    assert part.startswith("table loads, ")
    said(product, status=0)
    assert said(product, "--no-repair", status=0)["differences"] == []
    with opened(product) as site:
        rows = site.tables.scan("loads").sort("load", "since", "job").collect()
        last = {row["load"]: row["event"] for row in rows.iter_rows(named=True)}
        loads = {load.load for load in site.loads()}
    assert {load for load, event in last.items() if event == "in force"} == loads


@pytest.mark.rule("OP-22", "IN-55")
def test_undo_and_redo_in_one_second_stay_in_order(product: Product) -> None:
    product.redo(7)
    assert said(product, "--no-repair", status=0)["differences"] == []
    product.undo(7)
    assert said(product, "--no-repair", status=0)["differences"] == []


def other_figure(site: Site) -> None:
    with site.writing() as session:
        row = session.scalars(select(ReceiptRow).where(ReceiptRow.job == 3)).one()
        assert '"total_signals": 4' in row.document
        row.document = row.document.replace('"total_signals": 4', '"total_signals": 5')


def other_devices(site: Site) -> None:
    with site.writing() as session:
        row = session.scalars(select(ReceiptRow).where(ReceiptRow.job == 3)).one()
        assert '"total_devices": 3' in row.document
        row.document = row.document.replace('"total_devices": 3', '"total_devices": 2')


def other_mappings(site: Site) -> None:
    with site.writing() as session:
        for row in session.scalars(select(ReceiptRow).where(ReceiptRow.job == 1)):
            row.document = row.document.replace('"new_mappings": 3', '"new_mappings": 4')
        file = session.scalars(select(FileRow).where(FileRow.job == 1)).one()
        assert file.outcome is not None
        assert '"new":3' in file.outcome
        file.outcome = file.outcome.replace('"new":3', '"new":4')


def lost_ids(site: Site) -> None:
    site.tables.replace("ids", [], site.tables.files("ids", 101)[:1])


@pytest.mark.rule("OP-22", "IN-76", "IN-80")
@pytest.mark.parametrize(
    ("part", "damage"),
    [
        ("receipt of job 3", other_figure),
        ("receipt of job 3", other_devices),
        ("receipt of job 1", other_mappings),
        ("table ids, 101", lost_ids),
    ],
)
def test_wrong_counters_and_facts_are_named_and_left(
    product: Product, part: str, damage: Callable[[Site], None]
) -> None:
    with opened(product) as site:
        damage(site)
    document = said(product, status=1)
    assert parts(document) == {part}
    assert not document["differences"][0]["repaired"]
    text = product.run("check", expect=(1,))
    assert f"WRONG    {part}: " in text
    assert "backup" in text


@pytest.mark.rule("OP-22")
def test_facts_in_many_ranges(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures do not depend on how much is looked at at once."""
    monkeypatch.setattr("openaudience.runs.checking_ids.MOST_IDS", 1)
    without_index(product)
    before = parts(said(product, status=0))
    assert "ids/101" in before
    assert said(product, "--no-repair", status=0)["differences"] == []


@pytest.mark.rule("OP-22")
def test_rules_that_are_gone_are_named(product: Product) -> None:
    for path in (product.home / "production" / "rulesets").iterdir():
        path.unlink()
    with opened(product) as site, site.reading() as session:
        digest = session.scalars(select(LoadRow.ruleset)).first()
    assert digest is not None
    product.run("check", expect=(3,))


@pytest.mark.rule("OP-22")
def test_beta_has_receipts_only(tmp_path: Path) -> None:
    product = Product(tmp_path / "home", WORKSPACE, environment="beta")
    product.drop([FILES[2]])
    assert said(product, status=0)["checked"] == {"receipts": 1}


@pytest.mark.rule("OP-22", "OP-61")
@pytest.mark.parametrize("seed", range(2))
def test_random_histories_are_right_at_every_step(seed: int, tmp_path: Path) -> None:
    from random import Random

    rng = Random(seed + 50)
    world = random_world(rng)
    model = ModelInstallation(world.workspace, world.limits)
    product = Product(tmp_path / "home", world.workspace, world.limits)
    numbers: dict[int, int] = {}
    jobs = [list(job.files) for job in model.jobs]
    for distance, step in random_steps(rng, world, model.model, jobs, 10):
        model.now += distance
        product.now = model.now
        take(step, product, model, numbers)
        jobs[:] = [list(job.files) for job in model.jobs]
        with opened(product) as site:
            assert check(site, False).differences == []
    populations = product.populations()
    shutil.rmtree(product.home / "production" / "index")
    with opened(product) as site:
        assert check(site, True).good
        assert check(site, False).differences == []
    assert product.populations() == populations
