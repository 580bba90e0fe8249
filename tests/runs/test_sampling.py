"""Error samples: bounds, the second reading of a file, the switch, and files that share a run (60 §4)."""

from __future__ import annotations

import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openaudience.inbound.memo import Memo
from openaudience.inbound.scan import Rows, scan
from openaudience.runs.sampling import MOST_GROUPS, SHOWN, ErrorSampler
from openaudience.vocabulary import Column, IdKind, Layout
from oracle.driver import Product
from oracle.walkthroughs import CRM, SYNC, SYNC_NAME, one

LAYOUT = Layout("data", (Column(1, IdKind.COOKIE),))


def switched(on: bool) -> dict[str, Any]:
    workspace = copy.deepcopy(CRM)
    workspace["partners"][0]["dataSources"][0]["samplingEnabled"] = on
    return workspace


@pytest.fixture
def world(tmp_path: Path) -> Product:
    product = Product(tmp_path / "home", switched(True))
    product.drop([(SYNC_NAME, SYNC)])
    return product


def scanned(lines: list[str], first_line: int = 1) -> Rows:
    text = np.frombuffer("".join(f"{line}\n" for line in lines).encode(), np.uint8)
    return scan(text, first_line, LAYOUT, Memo(lambda raw: 1), (1, 2))


@pytest.mark.rule("UI-69", "UI-64")
def test_no_more_groups_than_ten_thousand_are_held() -> None:
    sampler = ErrorSampler("production", 1)
    half = MOST_GROUPS * 3 // 4
    for block in range(2):
        sampler.see(scanned([f"bad{number}" for number in range(block * half, (block + 1) * half)], 1 + block * half))
    # what is known is counted on; what is new has no room
    sampler.see(scanned(["bad7"] * 3 + [f"bad{2 * half - 1}"] * 5, 1 + 2 * half))
    assert [len(groups.firsts) for groups in sampler._groups] == [MOST_GROUPS, 0, 0, 0, 0]
    rows = sampler.rows(1)
    assert len(rows) == SHOWN
    assert [(row.shown, row.count, row.line) for row in rows[:2]] == [("bad7", 4, 8), ("bad0", 1, 1)]


@pytest.mark.rule("UI-64", "UI-66")
def test_a_file_that_is_read_twice_is_sampled_once(world: Product) -> None:
    # long enough that the first errors are seen before it shows that a user has too many lines
    lines = ["bad", *[f"C-1\t10,x={'y' * 95_000}"] * 230, "bad", "worse"]
    receipt = one(world, "ftp_dpm_5001_1700000000.sync", "\n".join(lines).encode())
    samples = world.json("samples", "5001")
    assert [(sample["shown"], sample["count"], sample["line"]) for sample in samples] == [
        ("bad", 2, 1),
        ("worse", 1, 233),
    ]
    assert receipt["reason_counts"] == {"missing_tab": 3}
    assert receipt["records_received"] - receipt["records_processed"] == 30


@pytest.mark.rule("UI-61", "RT-208")
def test_switching_off_ends_it_and_switching_on_begins_anew(world: Product) -> None:
    def seen(number: int) -> bool:
        one(world, f"ftp_dpm_5001_{1_700_000_000 + number}.sync", f"bad{number}\n".encode())
        return f"bad{number}" in {sample["shown"] for sample in world.json("samples", "5001")}

    assert seen(1)
    world.now += timedelta(days=3)
    world.apply(switched(False))
    assert not seen(2)
    world.now += timedelta(days=1)
    world.apply(switched(True))
    world.now += timedelta(days=14) - timedelta(seconds=1)
    assert seen(3)
    world.now += timedelta(seconds=1)
    assert not seen(4)


@pytest.mark.rule("UI-64", "IN-85")
def test_files_of_one_run_have_their_own_samples(world: Product) -> None:
    files = [
        (f"ftp_dpm_5001_{1_700_000_000 + number}.sync", b"C-1\t10\n" + b"bad\n" * number) for number in range(1, 9)
    ]
    files.append(("ftp_dpm_5001_1700000009.sync.gz", b"bad\n"))
    files.append(("ftp_dpm_7007_1700000010.sync", b"bad\n"))
    world.drop(files)
    samples = world.json("samples", "5001")
    assert {sample["file"]: sample["count"] for sample in samples} == {
        name: n for n, (name, _) in enumerate(files[:8], 1)
    }
    assert len(samples) == 8
    assert len({sample["job"] for sample in samples}) == 1


@pytest.mark.rule("UI-67", "IN-35")
def test_a_wrong_device_id_comes_with_the_form_expected(world: Product) -> None:
    wrong = b"0b03c8f5-f32d-4eba-9cb8-cd4b0b1a2c30\t10\n"
    one(world, "ftp_dpm_20915_5001_1700000000.sync", wrong)
    (sample,) = world.json("samples", "5001")
    assert sample["expected"] == "20915 · IDFA: 32 upper-case hexadecimal digits as 8-4-4-4-12"
    assert sample["offending"] == "id"
    assert "20915 · IDFA" in world.run("samples", "5001")


@pytest.mark.rule("UI-29")
def test_signals_and_traits_count_apart(world: Product) -> None:
    # one signal that realizes two traits, then two signals that realize one
    both = copy.deepcopy(CRM)
    both["partners"][0]["traits"].append({**both["partners"][0]["traits"][0], "sid": 960, "name": "again"})
    world.apply(both)
    receipt = one(world, "ftp_dpm_5001_1700000000.sync", b"C-1\t10\n")
    assert (receipt["total_signals"], receipt["total_unused_signals"], receipt["total_realized_traits"]) == (1, 0, 2)
    receipt = one(world, "ftp_dpm_5001_1700000001.sync", b"C-1\tcolor=red,size=41\n")
    assert (receipt["total_signals"], receipt["total_unused_signals"], receipt["total_realized_traits"]) == (2, 0, 1)
