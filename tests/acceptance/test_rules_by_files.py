"""Single rules of inbound files, through the command line, with figures worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from oracle import cases
from oracle.driver import Product
from oracle.walkthroughs import CRM, Maker


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    def product(workspace: Mapping[str, Any], *, beta: bool = False) -> Product:
        return Product(tmp_path / "home", workspace, environment="beta" if beta else "production")

    return product


@pytest.mark.rule("IN-07")
def test_duplicates(make: Maker) -> None:
    cases.duplicates(make)


@pytest.mark.rule("IN-08", "IN-50", "IN-14")
def test_order_and_jobs(make: Maker) -> None:
    cases.order_and_jobs(make)


@pytest.mark.rule("IN-52", "IN-53")
def test_splits_of_one_overwrite(make: Maker) -> None:
    cases.splits_of_one_overwrite(make)


@pytest.mark.rule("IN-51")
def test_overwrite_keeps_other_sources(make: Maker) -> None:
    cases.overwrite_keeps_other_sources(make)


@pytest.mark.rule("IN-41", "IN-47", "IN-48", "IN-84")
def test_removals(make: Maker) -> None:
    cases.removals(make)


@pytest.mark.rule("IN-48", "IN-80")
def test_given_taken_given(make: Maker) -> None:
    cases.given_taken_given(make)


@pytest.mark.rule("IN-26")
def test_lines_of_one_user(make: Maker) -> None:
    cases.lines_of_one_user(make)


@pytest.mark.rule("IN-70", "IN-71", "IN-72", "IN-75", "IN-76", "IN-77")
def test_chained_sync(make: Maker) -> None:
    cases.chained(make)


@pytest.mark.rule("RT-309", "IN-62")
def test_device_advertising_ids_move(make: Maker) -> None:
    cases.device_ids_move(make)


@pytest.mark.rule("IN-33", "IN-63", "IN-73")
def test_unknown_devices(make: Maker) -> None:
    cases.unknown_devices(make)


@pytest.mark.rule("IN-55")
def test_undone_sync_runs_later_files_again(make: Maker) -> None:
    cases.undone_sync(make)


@pytest.mark.rule("IN-09", "IN-13", "IN-17", "OP-13")
def test_access(make: Maker) -> None:
    cases.access(make)


@pytest.mark.rule("IN-74")
def test_customer_emails(make: Maker) -> None:
    cases.customer_emails(make)


@pytest.mark.rule("QL-422", "QL-429", "QL-1602")
def test_rules_on_absent_keys(make: Maker) -> None:
    cases.by_absence(make)


@pytest.mark.rule("RT-306")
def test_cookies_of_a_device(make: Maker) -> None:
    cases.cookies_of_a_device(make)


@pytest.mark.rule("OP-16")
def test_unknown_profile_is_an_error_in_words(make: Maker) -> None:
    product = make(CRM)
    assert isinstance(product, Product)
    for text in ("5001:nobody", "9" * 38, "20914:4aaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"):
        assert product.profile(text) is None
