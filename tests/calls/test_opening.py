"""Which store an address means."""

from __future__ import annotations

from pathlib import Path

import pytest

from calls.samples import SEEDS, call, saying
from openaudience.calls.opening import open_calls
from openaudience.errors import UsageError


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("", "home/calls.db"),
        ("sqlite:///edge.db", "home/edge.db"),
        ("sqlite:///deep/edge.db", "home/deep/edge.db"),
        ("sqlite:///{}/elsewhere.db", "elsewhere.db.home"),
    ],
)
def test_an_address_names_a_file(tmp_path: Path, address: str, file: str) -> None:
    store = open_calls(address.format(tmp_path), tmp_path / "home", SEEDS)
    try:
        assert (tmp_path / file).is_file()
        assert store.newest() == 0
    finally:
        store.close()


@pytest.mark.parametrize("address", ["redis://user:hidden@host/0", "valkey://:hidden@host", "postgresql://u:hidden@h"])
def test_other_stores_are_not_there_yet(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match=r"edge\.store: [a-z]+: is not available yet") as told:
        open_calls(address, tmp_path, SEEDS)
    assert "hidden" not in str(told.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "address", ["calls.db", "/var/calls.db", "sqlite:", "sqlite://", "sqlite:///", "sqlite:////", "sqlite:x.db"]
)
def test_what_names_no_file_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match=r"edge\.store .*write sqlite:///PATH"):
        open_calls(address, tmp_path, SEEDS)


@pytest.mark.parametrize("address", ["", "sqlite:///edge.db", "sqlite:///{}/edge.db"])
def test_environments_never_share_a_file(tmp_path: Path, address: str) -> None:
    said = address.format(tmp_path)
    real = open_calls(said, tmp_path / "production", SEEDS)
    trial = open_calls(said, tmp_path / "beta", SEEDS)
    try:
        real.group([saying(call())])
        assert (real.newest(), trial.newest()) == (1, 0)
    finally:
        real.close()
        trial.close()
