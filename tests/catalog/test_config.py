"""Settings: file, environment, origins, mistakes (OP-40)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openaudience.config import Configuration, load
from openaudience.errors import InputError


def shown(configuration: Configuration) -> dict[str, tuple[Any, str]]:
    return {f"{o.section}.{o.key}": (o.value, o.origin) for o in configuration.origins}


@pytest.mark.rule("OP-40")
def test_values_come_from_default_file_and_environment(tmp_path: Path) -> None:
    file = tmp_path / "openaudience.toml"
    file.write_text("[limits]\ncookies = 7\ndevices_per_customer = 3\n[receipts]\nfrom = 'a@example.com'\n")
    environ = {
        "OPENAUDIENCE_LIMITS_COOKIES": "9",
        "OPENAUDIENCE_RECEIPTS_ALWAYS": "b@example.com, c@example.com",
        "OPENAUDIENCE_RECEIPTS_SUBJECT_COMPAT": "true",
        "OPENAUDIENCE_HOME": "/elsewhere",
    }
    configuration = load(file, environ)
    assert configuration.settings.limits.cookies == 9
    assert configuration.settings.receipts.always == ["b@example.com", "c@example.com"]
    assert configuration.settings.receipts.subject_compat is True
    table = shown(configuration)
    assert table["limits.cookies"] == (9, "OPENAUDIENCE_LIMITS_COOKIES")
    assert table["limits.devices_per_customer"] == (3, "openaudience.toml")
    assert table["receipts.from"] == ("a@example.com", "openaudience.toml")
    assert table["retention.archive_days"] == (30, "default")


@pytest.mark.rule("RT-306", "IN-20", "QL-004")
def test_defaults(tmp_path: Path) -> None:
    limits = load(tmp_path / "none.toml", {}).settings.limits
    assert (limits.devices_per_customer, limits.customers_per_device) == (100, 10)
    assert (limits.cookies, limits.emails_per_customer) == (1000, 10)
    assert (limits.compressed_bytes, limits.uncompressed_bytes) == (3 * 2**30, 5 * 2**30)
    assert (limits.traits, limits.trait_folders, limits.folder_depth) == (100_000, 2_000, 5)


@pytest.mark.rule("OP-40")
@pytest.mark.parametrize(
    ("text", "environ", "words"),
    [
        ("[limits]\ncookys = 7\n", {}, ["unknown key limits.cookys", "did you mean cookies?"]),
        ("[limit]\ncookies = 7\n", {}, ["unknown section [limit]", "did you mean limits?"]),
        ("limits = 3\n", {}, ["[limits]"]),
        ("[limits\n", {}, ["not TOML", "line 1"]),
        ("[limits]\ncookies = 0\n", {}, ["limits.cookies", ">= 1"]),
        ("[limits]\ntraits = 150001\n", {}, ["limits.traits", "<= 150000"]),
        ("[limits]\ncookies = 'x'\n", {}, ["openaudience.toml: limits.cookies"]),
        (
            "",
            {"OPENAUDIENCE_LIMITS_COOKYS": "7"},
            ["OPENAUDIENCE_LIMITS_COOKYS", "did you mean OPENAUDIENCE_LIMITS_COOKIES?"],
        ),
        ("", {"OPENAUDIENCE_LIMITS_COOKIES": "many"}, ["OPENAUDIENCE_LIMITS_COOKIES", "whole number"]),
        ("", {"OPENAUDIENCE_RECEIPTS_SUBJECT_COMPAT": "si"}, ["true or false"]),
    ],
)
def test_mistakes_name_the_place_and_the_nearest_key(
    tmp_path: Path, text: str, environ: dict[str, str], words: list[str]
) -> None:
    file = tmp_path / "openaudience.toml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load(file, environ)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.rule("OP-40")
def test_a_password_is_never_shown(tmp_path: Path) -> None:
    configuration = load(tmp_path / "none.toml", {"OPENAUDIENCE_CATALOG_URL": "postgresql://ana:s3cr3t@db/oa"})
    assert shown(configuration)["catalog.url"][0] == "postgresql://ana:***@db/oa"
    assert configuration.settings.catalog.url == "postgresql://ana:s3cr3t@db/oa"
    assert "s3cr3t" not in repr(configuration.origins)
