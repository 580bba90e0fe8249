"""What calls sent, counted and listed: used or not, by partner and days, without what is never shown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from openaudience.calls.model import Call, Origin, Sent
from openaudience.home import Home
from openaudience.runs.site import Site
from oracle.driver import Product

NOW = datetime(2026, 3, 12, 9, tzinfo=UTC)
DEVICE = "1" * 38


@pytest.fixture
def product(tmp_path: Path) -> Product:
    made = Product(tmp_path / "home", None)
    made.now = NOW
    made.apply({"partners": [{"pid": 900, "name": "acme"}, {"pid": 901, "name": "other"}]})
    return made


def send(product: Product, at: datetime, pid: int, *sent: Sent) -> None:
    call = Call(int(at.timestamp()), pid, DEVICE, True, Origin.EVENT, sent=sent)
    with Home.open(product.home, clock=lambda: product.now) as home:
        site = Site(home, "production")
        assert site.calls.group([lambda view: (call, None)]) == [None]
        site.close()


@pytest.mark.rule("RT-1013", "QL-1601", "QL-1603", "QL-1605")
def test_signals_are_listed_by_how_often_they_came(product: Product) -> None:
    bag, page, new = Sent("item", "bag", False), Sent("c_page", "product", True), Sent("c_new", "", False)
    send(product, NOW - timedelta(hours=3), 900, bag, page)
    send(product, NOW - timedelta(days=2), 900, bag, Sent("d_zx", "7", False), Sent("h_host", "x.example", False))
    send(product, NOW - timedelta(hours=1), 901, bag, new, Sent("c_new", "1", False))
    send(product, datetime(2026, 3, 2, 23, 59, tzinfo=UTC), 900, page)  # the last hour that ten days do not reach

    def listed(*options: str) -> list[tuple[Any, ...]]:
        documents = product.json("signals", *options)
        return [tuple(one[name] for name in ("partner", "key", "value", "used", "count")) for one in documents]

    # also what is in no table yet, as every list is of this moment
    everything = [
        ("acme", "item", "bag", False, 2),
        ("other", "c_new", "1", False, 2),
        ("acme", "c_page", "product", True, 1),
        ("other", "item", "bag", False, 1),
    ]
    assert listed() == everything
    assert listed("--unused") == [one for one in everything if not one[3]]
    assert listed("--partner", "other") == [one for one in everything if one[0] == "other"]
    assert listed("--partner", "900", "--unused", "--days", "1") == [("acme", "item", "bag", False, 1)]
    assert ("acme", "c_page", "product", True, 2) in listed("--days", "11")
    assert "2  unused  item=bag  acme" in product.run("signals")


def test_what_anybody_sends_does_not_write_to_the_terminal(product: Product) -> None:
    send(product, NOW, 900, Sent("c_\x1b[31m", "a\x1b]0;owned\x07\n   9  used    c_false=1  acme\x9b", False))
    (line,) = product.run("signals").splitlines()
    assert line.isprintable()
    assert "owned" in line


def test_what_cannot_be_listed_is_said(product: Product) -> None:
    product.run("signals", "--partner", "nobody", expect=(1,))
    product.run("signals", "--days", "0", expect=(2,))
    assert product.run("signals", "--unused") == "no unused signals within 10 days\n"
