"""The model itself against the figures of the specification: it must be right before it may judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest

from oracle import cases, walkthroughs
from oracle.generators import PARTNER, random_world
from oracle.histories import many_files, soon, sums_differences, walk
from oracle.installation import Installation, ModelInstallation
from oracle.lines import ORDER, Refused, read_name
from oracle.rules import Rule


def make(workspace: Mapping[str, Any], *, beta: bool = False) -> Installation:
    return ModelInstallation(workspace, beta=beta)


@pytest.mark.parametrize(
    "walk",
    [
        walkthroughs.in_w1,
        walkthroughs.in_w2,
        walkthroughs.in_w3,
        walkthroughs.in_w4,
        walkthroughs.in_w5,
        walkthroughs.in_w6,
        walkthroughs.ql_w1,
        walkthroughs.ql_w2,
        walkthroughs.rt_a6,
        walkthroughs.rt_a9,
        cases.duplicates,
        cases.order_and_jobs,
        cases.splits_of_one_overwrite,
        cases.overwrite_keeps_other_sources,
        cases.removals,
        cases.given_taken_given,
        cases.lines_of_one_user,
        cases.chained,
        cases.device_ids_move,
        cases.unknown_devices,
        cases.undone_sync,
        cases.access,
        cases.customer_emails,
        cases.by_absence,
        cases.cookies_of_a_device,
    ],
)
def test_model_walks(walk: Callable[..., Any]) -> None:
    walk(make)


ACCEPTED = """
ftp_dpm_478_1366545717.sync ftp_dpm_478_1366545717.sync.2.gz ftp_dpm_478_567_1366545717.overwrite
ftp_dpm_100_1234567890.sync.gpg ftp_dpm_odc_20915_99_1556223815.sync ftp_dpm_odc_12345_1556223815.sync
adobe_id_111_222_333_444_1454442149.sync adobe_id_123_898_456_1454442149.sync.1.gz c2c_id_123_898_1454442149.sync.gz
""".split()  # noqa: SIM905
REFUSED = """
ftp_dpm_478_1366545717 ftp_dpm_478.sync FTP_DPM_478_1366545717.sync ftp_dpm_478_1366545717.sync.gz.1
ftp_dpm_-4_1366545717.sync ftp_dpm_478_13665457170.sync adobe_id_123_1454442149.sync
adobe_id_1_2_1454442149.overwrite
""".split()  # noqa: SIM905


@pytest.mark.parametrize("name", ACCEPTED)
def test_model_takes_name(name: str) -> None:
    assert read_name(name).text == name


@pytest.mark.parametrize("name", REFUSED)
def test_model_refuses_name(name: str) -> None:
    with pytest.raises(Refused) as refusal:
        read_name(name)
    assert refusal.value.code == "name_syntax"


@pytest.mark.parametrize(
    ("rule", "record", "holds"),
    [
        ('color != "red"', [], False),
        ('color != "red"', [("color", "red"), ("color", "blue")], True),
        ('size == 42 AND NOT (color == "red")', [("size", "42")], True),
        ("price >= 20.00 AND price <= 80.5", [("price", "5"), ("price", "90")], True),
        ("x == 7 OR y == 7 AND z == hot", [("x", "7")], True),
        ("(x == 7 OR y == 7) AND z == hot", [("x", "7")], False),
        ("a == 1 NOT b == 2", [("a", "1"), ("b", "2")], False),
        ('title matcheswords "red car"', [("title", "big RED car!")], True),
        (r'sku matchesregex "ab\d+"', [("sku", "AB77")], False),
        (r'q == "5\" disk"', [("q", '5" disk')], True),
        (r'path contains "c:\\tmp"', [("path", "C:\\tmp\\x")], True),
        ('contains contains "x"', [("contains", "axb")], True),
        ('note == ""', [("note", "")], True),
    ],
)
def test_model_reads_rules(rule: str, record: list[tuple[str, str]], holds: bool) -> None:
    assert Rule(rule).holds(record) is holds


class Echo(ModelInstallation):
    """A second model in the place of the product: histories must run, and agree."""


@pytest.mark.parametrize("seed", range(6))
def test_histories_run(seed: int) -> None:
    world = random_world(Random(seed))
    assert walk(seed, 20, Path(), product=Echo(world.workspace, world.limits)) == []


def test_files_reach_every_reason() -> None:
    codes: set[str] = set()
    statuses: set[str] = set()
    for seed in range(10):
        model, drops = many_files(seed, 60)
        for files in drops:
            soon(model)
            for receipt in model.drop(files, PARTNER):
                assert sums_differences(receipt) == []
                codes |= set(receipt["reason_counts"])
                statuses.add(receipt["reason"] or receipt["status"])
    assert set(ORDER) - codes == {"beta", "opted_out"}
    assert len(statuses) > 12
