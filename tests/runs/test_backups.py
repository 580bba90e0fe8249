"""A backup is one consistent state, made while everything goes on; a home made from it answers the same."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from openaudience.errors import InputError, StoreUnavailable, SystemFailure
from openaudience.home import Home
from openaudience.runs import backups
from openaudience.runs.backups import backup, restore
from openaudience.runs.dropping import drop
from openaudience.runs.service import ingest
from openaudience.runs.site import Lease, Site
from openaudience.store.copying import copy_tree
from oracle.driver import Product
from oracle.walkthroughs import U1, U2, onboarded

WORKSPACE: dict[str, Any] = {
    "partners": [
        {
            "pid": 1,
            "name": "acme",
            "dataSources": [{"dataSourceId": 101, "name": "Site", "idType": "COOKIE"}],
            "traits": [onboarded(11, 101, "ic == 1"), onboarded(12, 101, "ic == 2")],
        }
    ]
}
SYNC = ("adobe_id_0_101_1600000000.sync", f"{U1}\tk\n{U2}\tj\n".encode())
FIRST = ("ftp_dpm_101_1700000000.sync", b'k\t"ic"="1"\n')
SECOND = ("ftp_dpm_101_1700000001.sync", b'j\t"ic"="2"\n')
REFUSED = ("ftp_dpm_101_1700000002.sync.lock", b"x\n")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Product:
    product = Product(tmp_path_factory.mktemp("backups") / "home", WORKSPACE)
    for file in (SYNC, FIRST, REFUSED):
        product.now += timedelta(minutes=1)
        product.drop([file])
    beta = Product(product.home, None, environment="beta")
    beta.now = product.now
    beta.drop([FIRST])
    return product


@pytest.fixture
def product(sample: Product, tmp_path: Path) -> Product:
    shutil.copytree(sample.home, tmp_path / "home")
    copy = Product(tmp_path / "home", None)
    copy.now = sample.now
    return copy


def at(product: Product, home: Path) -> Product:
    """Another home at the same instant."""
    other = Product.__new__(Product)
    other.__dict__.update(product.__dict__)
    other.home = home
    return other


def answers(product: Product) -> list[Any]:
    beta = at(product, product.home)
    beta.environment = "beta"
    return [
        product.json("traits"),
        product.json("jobs"),
        product.json("profile", "101:k"),
        product.json("profile", "101:j"),
        product.json("receipt", "2"),
        beta.json("jobs"),
    ]


@pytest.mark.rule("OP-22")
def test_a_home_made_from_a_backup_is_the_same(product: Product, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    before = answers(product)
    assert product.json("backup", str(folder)) == {"backup": str(folder)}
    assert answers(product) == before
    shutil.rmtree(product.home)
    again = at(product, tmp_path / "again")
    again.run("restore", str(folder))
    assert answers(again) == before
    assert again.json("check", "--no-repair")["differences"] == []
    # what undo and IN-07 need is there: kept copies, rules, the ledger
    again.undo(1)
    assert again.profile("101:k") in (None, {"device": None, "ids": {(101, "k")}, "traits": {}})
    again.redo(1)
    assert again.json("profile", "101:k")["traits"] == before[2]["traits"]
    assert again.drop([FIRST])[0]["status"] == "duplicate"
    assert [path.name for path in (again.home / "production" / "quarantine").rglob("*.lock")] == [REFUSED[0]]
    assert again.drop([SECOND])[0]["stored_records"] == 1


@pytest.mark.rule("OP-22", "OP-66")
def test_nobody_else_may_read_the_keys(product: Product, tmp_path: Path) -> None:
    product.run("backup", str(tmp_path / "copy"))
    again = at(product, tmp_path / "again")
    again.run("restore", str(tmp_path / "copy"))
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o700
    for root in (tmp_path / "copy", again.home):
        keys = [root / "keys", *(root / "keys").rglob("*")]
        assert len(keys) >= 3
        for path in keys:
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert (again.home / "keys" / "secret.json").read_bytes() == (product.home / "keys" / "secret.json").read_bytes()


@pytest.mark.rule("OP-22")
def test_files_that_come_while_the_copies_are_made_are_not_in_it(
    product: Product, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying takes long: meanwhile a file is applied and everything that was replaced is deleted."""
    before = answers(product)
    folder = tmp_path / "copy"
    (path,) = product.write([SECOND])
    really = copy_tree

    def slowly(source: Path, target: Path, *more: Any, **options: Any) -> int:
        if target == folder:
            with Home.open(product.home, lambda: product.now + timedelta(hours=1)) as home:
                site = Site(home, "production")
                assert [one.receipt.status for one in ingest(site, [path])] == ["processed"]
                old = site.generations.sweep((), product.now + timedelta(days=4000), timedelta(0))
                assert any(name.startswith("traits/") for name in old) or any(name.startswith("gen-") for name in old)
        return really(source, target, *more, **options)

    monkeypatch.setattr(backups, "copy_tree", slowly)
    product.run("backup", str(folder))
    monkeypatch.undo()
    assert product.populations()[12] == {"device": 1, "cross_device": 0}
    again = at(product, tmp_path / "again")
    again.run("restore", str(folder))
    assert answers(again) == before
    assert again.json("check", "--no-repair")["differences"] == []


@pytest.mark.rule("OP-22", "OP-13")
def test_files_that_wait_are_applied_by_the_new_home(product: Product, tmp_path: Path) -> None:
    (path,) = product.write([SECOND])
    with Home.open(product.home, lambda: product.now) as home:
        drop(Site(home, "production"), [path])
        backup(home, tmp_path / "copy")
    again = at(product, tmp_path / "again")
    again.run("restore", str(tmp_path / "copy"))
    assert again.populations()[12] == {"device": 1, "cross_device": 0}
    assert again.json("check", "--no-repair")["differences"] == []


@pytest.mark.rule("OP-22")
def test_a_backup_waits_for_the_applier(product: Product, tmp_path: Path) -> None:
    settings = product.home / "openaudience.toml"
    settings.write_text(settings.read_text() + "\n[timing]\nwait_seconds = 1\n")
    with Home.open(product.home, lambda: product.now) as home:
        with Lease(Site(home, "beta")), pytest.raises(StoreUnavailable, match="another process"):
            backup(home, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
        backup(home, tmp_path / "copy")
        assert not (home.path / backups.STAGING).exists()


@pytest.mark.rule("OP-22")
def test_a_backup_that_fails_leaves_nothing(product: Product, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(backups, "seal", full)
    product.run("backup", str(tmp_path / "copy"), expect=(3,))
    assert not (tmp_path / "copy").exists()
    assert not (product.home / backups.STAGING).exists()


@pytest.mark.rule("OP-22")
def test_where_a_backup_may_not_go(product: Product, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "letter").write_text("dear")
    product.run("backup", str(full), expect=(1,))
    product.run("backup", str(full / "letter"), expect=(1,))
    product.run("backup", str(product.home / "backup"), expect=(1,))
    assert (full / "letter").read_text() == "dear"
    assert not (product.home / "backup").exists()


@pytest.mark.rule("OP-22")
def test_another_catalog_is_backed_up_by_its_own_tool(product: Product, tmp_path: Path) -> None:
    settings = product.home / "openaudience.toml"
    settings.write_text(settings.read_text() + '\n[catalog]\nurl = "postgresql://somewhere/catalog"\n')
    home = Home(product.home, lambda: product.now)
    with pytest.raises(InputError, match="pg_dump"):
        backup(home, tmp_path / "copy")


def unfinished(folder: Path) -> None:
    (folder / "contents.json").unlink()


def file_missing(folder: Path) -> None:
    next(folder.rglob("*.parquet")).unlink()


def file_cut(folder: Path) -> None:
    path = folder / "catalog.db"
    path.write_bytes(path.read_bytes()[:-1])


def other_form(folder: Path) -> None:
    path = folder / "contents.json"
    path.write_text(path.read_text().replace('"format":1', '"format":2'))


@pytest.mark.rule("OP-22", "OP-43")
@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (unfinished, InputError),
        (file_missing, SystemFailure),
        (file_cut, SystemFailure),
        (other_form, SystemFailure),
    ],
)
def test_a_damaged_backup_makes_no_home(
    product: Product, tmp_path: Path, damage: Callable[[Path], None], error: type[Exception]
) -> None:
    product.run("backup", str(tmp_path / "copy"))
    damage(tmp_path / "copy")
    with pytest.raises(error):
        restore(tmp_path / "copy", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.rule("OP-22")
def test_a_home_is_not_overwritten(product: Product, tmp_path: Path) -> None:
    before = answers(product)
    product.run("backup", str(tmp_path / "copy"))
    product.run("restore", str(tmp_path / "copy"), expect=(1,))
    assert answers(product) == before
