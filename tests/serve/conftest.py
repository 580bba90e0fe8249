"""A home made once; each test works on a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from serve.house import make_home


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("serve") / "home")


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "home"))
