"""Error samples through the command line: which records, how long, and what they never show."""

from __future__ import annotations

import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from oracle.driver import Product
from oracle.walkthroughs import CRM, SYNC, SYNC_NAME, one

SAMPLED: dict[str, Any] = copy.deepcopy(CRM)
SAMPLED["partners"][0]["dataSources"][0]["samplingEnabled"] = True


@pytest.fixture
def world(tmp_path: Path) -> Product:
    product = Product(tmp_path / "home", SAMPLED)
    product.drop([(SYNC_NAME, SYNC)])
    return product


@pytest.mark.rule("IN-85", "UI-63", "UI-64", "IN-36", "RT-1010", "UI-68")
def test_samples(world: Product) -> None:
    lines = [f"bad{number % 12}" for number in range(40)]
    lines += [
        "mail@site.example\t10",
        "C-1\tp_secret=1, P_Other = “a,b”,zz=yes",
        "C-1\tp_secret=1, P_Other = “a,b”,zz=yes",
    ]
    one(world, "ftp_dpm_5001_1700000000.sync", ("\n".join(lines) + "\nC-9\t10\nmail@site.example\n").encode())
    samples = world.json("samples", "5001")
    format_errors = [sample for sample in samples if sample["code"] in ("missing_tab", "pii")]
    assert [(sample["shown"], sample["count"], sample["line"]) for sample in format_errors] == [
        (f"bad{number}", 4 if number < 4 else 3, number + 1) for number in range(10)
    ]
    others = {sample["code"]: (sample["shown"], sample["count"]) for sample in samples if sample not in format_errors}
    assert others == {
        "not_synced": ("C-9", 1),
        "no_rule_matches": ("C-1\tp_secret=…, P_Other =…,zz=yes", 2),
    }


@pytest.mark.rule("IN-36", "RT-1920", "UI-68")
def test_personal_data_never_show(world: Product) -> None:
    one(world, "ftp_dpm_5001_1700000000.sync", b"mail@site.example\t10\nmail@site.example\nmail@site.example \t10\n")
    shown = [sample["shown"] for sample in world.json("samples", "5001")]
    assert len(shown) == 3
    assert all(text.startswith("m***@***") and "site" not in text for text in shown)


@pytest.mark.rule("UI-61", "UI-62", "UI-68", "RT-208")
def test_sampling_ends_by_itself(world: Product) -> None:
    world.now += timedelta(days=14) - timedelta(seconds=1)
    one(world, "ftp_dpm_5001_1700000000.sync", b"bad\n")
    world.now += timedelta(seconds=1)
    one(world, "ftp_dpm_5001_1700000001.sync", b"worse\n")
    assert [sample["shown"] for sample in world.json("samples", "5001")] == ["bad"]
    world.now += timedelta(days=30)
    assert world.json("samples", "5001") == []
