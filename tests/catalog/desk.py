"""Applies workspace texts to a database."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from sqlalchemy import Engine

from openaudience.catalog import Catalog, workspace
from openaudience.catalog.audiences import Audiences
from openaudience.catalog.migrate import ENVIRONMENTS
from openaudience.catalog.secrets import Vault
from openaudience.config import LimitsSection
from openaudience.errors import WorkspaceError

EXAMPLE = Path(__file__).parent / "example.yaml"
NOW = datetime(2026, 3, 2, 11, 4, 9, tzinfo=UTC)
DAY = timedelta(days=1)
KEY = asyncssh.generate_private_key("ssh-ed25519").export_private_key("openssh").decode()
VAULT = Vault(bytes(32))
SECRETS = {
    "ACME_S3_SECRET": "s3-s3cr3t",
    "ANA_PASSWORD": "ana-s3cr3t",
    "SHOP_ETL_SECRET": "shop-s3cr3t",
    "ACME_DROPOFF_PASSWORD": "drop-s3cr3t",
}


class Desk:
    """Applies texts to a database and keeps the clock."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.now = NOW
        self.limits = LimitsSection()
        (folder / "keys").mkdir(exist_ok=True)
        (folder / "keys" / "adpartner").write_text(KEY)

    def catalog(self, environment: str = "production") -> Catalog:
        return Catalog(self.engine, environment, lambda: self.now)

    def files(self, *texts: str) -> list[Path]:
        paths = [self.folder / f"w{number}.yaml" for number in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, encoding="utf-8")
        return paths

    def apply(
        self, *texts: str, environments: tuple[str, ...] = ENVIRONMENTS, prune: bool = False, diff: bool = False
    ) -> list[tuple[str, str, int | str, str]]:
        act = workspace.diff if diff else workspace.apply
        outcome = act(
            self.engine,
            workspace.load(self.files(*texts)),
            self.now,
            self.limits,
            VAULT,
            environments=environments,
            prune=prune,
            environ=SECRETS,
        )
        return [(change.action, change.kind, change.id, change.name) for change in outcome.changes]

    def mistakes(self, *texts: str, **options: Any) -> list[str]:
        with pytest.raises(WorkspaceError) as caught:
            self.apply(*texts, **options)
        return [f"{mistake.line}:{mistake.column}: {mistake.text}" for mistake in caught.value.mistakes]

    def warnings(self, text: str) -> list[str]:
        """What applying a text would warn of."""
        found = workspace.diff(
            self.engine, workspace.load(self.files(text)), self.now, self.limits, VAULT, environ=SECRETS
        )
        return [warning.text for warning in found.warnings]

    def audiences(self) -> Audiences:
        catalog = self.catalog()
        with catalog.reading() as session:
            return Audiences.of(catalog, session)

    def exported(self, environment: str = "production") -> Mapping[str, Any]:
        return workspace.exported(self.engine, environment, self.now)


def acme(**lists: str) -> str:
    """A small workspace: partner 1 with the source 10, and lists in flow style."""
    lists.setdefault("dataSources", "[{dataSourceId: 10, name: CRM}]")
    return "partners:\n  - pid: 1\n    name: acme\n" + "".join(f"    {key}: {text}\n" for key, text in lists.items())
