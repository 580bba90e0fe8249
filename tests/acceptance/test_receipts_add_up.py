"""Random files: receipts add up and say what the model says; `validate` finds the same faults; beta matches nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oracle.driver import Product
from oracle.generators import PARTNER
from oracle.histories import drop_differences, many_files, soon, sums_differences
from oracle.installation import ModelInstallation
from oracle.lines import CLASS_OF


def check(seed: int, count: int, folder: Path) -> None:
    model, drops = many_files(seed, count)
    product = Product(folder / "home", model.workspace, model.limits)
    for files in drops:
        soon(model)
        product.now = model.now
        before = len(product.kept_receipts)
        differences, _ = drop_differences(product, model, files)
        for receipt in product.kept_receipts[before:]:
            differences += sums_differences(receipt)
            classes = dict.fromkeys(CLASS_OF.values(), 0)
            for code, records in receipt["reason_counts"].items():
                classes[CLASS_OF[code]] += records
            differences += [f"{receipt['files']}: {name}" for name, sum_ in classes.items() if receipt[name] != sum_]
        assert differences == [], f"seed {seed}"


@pytest.mark.rule("IN-80", "IN-81", "IN-86", "IN-87", "IN-88", "UI-28")
@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 4))])
def test_receipts_add_up(seed: int, tmp_path: Path) -> None:
    check(seed, 50, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1100))
def test_many_receipts_add_up(seed: int, tmp_path: Path) -> None:
    check(seed, 100, tmp_path)


@pytest.mark.rule("IN-03")
def test_beta_matches_nothing(tmp_path: Path) -> None:
    model, drops = many_files(77, 40)
    beta = ModelInstallation(model.workspace, model.limits, beta=True)
    product = Product(tmp_path / "home", model.workspace, model.limits, environment="beta")
    for files in drops:
        soon(beta)
        product.now = beta.now
        differences, _ = drop_differences(product, beta, files)
        assert differences == []
    assert all(figure == {"device": 0, "cross_device": 0} for figure in product.populations().values())


@pytest.mark.rule("OP-12")
def test_validate_finds_what_the_receipt_counts(tmp_path: Path) -> None:
    model, drops = many_files(78, 40)
    product = Product(tmp_path / "home", model.workspace, model.limits)
    workspace = tmp_path / "workspace.json"
    workspace.write_text(json.dumps(model.workspace), encoding="utf-8")
    checked = 0
    for files in drops:
        soon(model)
        product.now = model.now
        paths = product.write(files)
        documents = product.json("validate", *map(str, paths), "--against", str(workspace), expect=(0, 1))
        verdicts = {Path(document["file"]).name: document for document in documents}
        for receipt in model.drop(files, PARTNER):
            if receipt["reason"] == "foreign_data_source":
                continue  # the command knows no sender but the owner of the first DPID (OP-13)
            if receipt["status"] == "rejected":
                document = verdicts[receipt["files"][0]]
                assert document["verdict"] == "not_accepted"
                assert receipt["reason"] in {error["code"] for error in document["errors"]}
            elif receipt["status"] == "processed":
                found: dict[str, int] = {}
                for name in receipt["files"]:
                    for code, records in verdicts[name]["reason_counts"].items():
                        found[code] = found.get(code, 0) + records
                expected = receipt["reason_counts"]
                for code, kind in CLASS_OF.items():
                    if kind in ("format_errors", "invalid_aam_ids", "invalid_device_ids"):
                        assert found.get(code, 0) == expected.get(code, 0), (receipt["files"], code)
                checked += 1
    assert checked > 20


@pytest.mark.rule("IN-82", "OP-15")
def test_receipt_and_jobs_say_the_same_later(tmp_path: Path) -> None:
    model, drops = many_files(79, 15)
    product = Product(tmp_path / "home", model.workspace, model.limits)
    for files in drops:
        soon(model)
        product.now = model.now
        product.drop(files, PARTNER)
    for document in product.kept_receipts:
        assert product.receipt(document["job"]) == document
    listed = {entry["job"]: entry for entry in product.json("jobs")}
    assert list(listed) == sorted(listed, reverse=True)
    for document in product.kept_receipts:
        entry = listed[document["job"]]
        assert (entry["files"], entry["status"]) == (document["files"], document["status"])
        assert (entry["received"], entry["stored"]) == (document["records_received"], document["stored_records"])
