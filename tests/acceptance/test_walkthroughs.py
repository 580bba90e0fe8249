"""The walk-throughs of the specification, number by number, through the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from oracle import walkthroughs
from oracle.driver import Product
from oracle.walkthroughs import Maker


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    def product(workspace: Mapping[str, Any], *, beta: bool = False) -> Product:
        home = tmp_path / "home"
        return Product(home, None if home.exists() else workspace, environment="beta" if beta else "production")

    return product


@pytest.mark.rule("IN-W1", "IN-46", "IN-47", "IN-60", "IN-64", "IN-80", "IN-81", "IN-86")
def test_in_w1_sync(make: Maker) -> None:
    walkthroughs.in_w1(make)


@pytest.mark.rule("IN-W2", "IN-51", "IN-53")
def test_in_w2_overwrite(make: Maker) -> None:
    walkthroughs.in_w2(make)


@pytest.mark.rule("IN-W3", "IN-55")
def test_in_w3_undo(make: Maker) -> None:
    walkthroughs.in_w3(make)


@pytest.mark.rule("IN-W4", "IN-26", "IN-49")
def test_in_w4_lines_per_user(make: Maker) -> None:
    walkthroughs.in_w4(make)


@pytest.mark.rule("IN-W5", "IN-12", "IN-34", "IN-62")
def test_in_w5_device_advertising_ids(make: Maker) -> None:
    walkthroughs.in_w5(make)


@pytest.mark.rule("IN-W6", "IN-01", "IN-03")
def test_in_w6_beta(make: Maker) -> None:
    walkthroughs.in_w6(make)


@pytest.mark.rule("QL-W1", "QL-101", "QL-208", "QL-521", "IN-61")
def test_ql_w1_onboarding(make: Maker) -> None:
    walkthroughs.ql_w1(make)


@pytest.mark.rule("QL-503", "QL-504", "QL-516")
def test_ql_w2_overwrite_and_expiry(make: Maker) -> None:
    walkthroughs.ql_w2(make)


@pytest.mark.rule("RT-306", "RT-308", "RT-302", "RT-221", "IN-75")
def test_rt_a6_first_in_first_out(make: Maker) -> None:
    walkthroughs.rt_a6(make)


@pytest.mark.rule("RT-401", "RT-402", "RT-305")
def test_rt_a9_before_and_after_a_sync(make: Maker) -> None:
    walkthroughs.rt_a9(make)
