"""An installation that exports: files are dropped and segments evaluated as usual, destinations are made by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from openaudience.catalog.audiences import Destination, Mapped
from openaudience.exports.generation import Generated, generate
from openaudience.exports.look import Look
from openaudience.home import Home
from openaudience.outbound.model import SyncMode
from openaudience.runs.membership import evaluate_all
from openaudience.runs.site import Lease, Site
from oracle.driver import Product
from oracle.model import Limits

TICK = datetime(2024, 3, 9, 14, tzinfo=UTC)
"""1709992800000, the first tick of the walk-throughs."""


def destination(number: int = 7301, **fields: Any) -> Destination:
    """A destination of type ``S2S`` with key 52011 unless said otherwise."""
    usual: dict[str, Any] = {
        "pid": 1510,
        "name": f"Destination {number}",
        "type": "S2S",
        "active": True,
        "batch": True,
        "user_id_key": 52011,
        "target": 52011,
        "alias": "",
        "labels": frozenset(),
        "unsegment": True,
        "accepts_device_ids": True,
        "sync_type": "lifetime",
        "lookback": None,
        "incremental": 1,
        "full": None,
        "iter_content": "changes",
        "sample": 1,
        "in_file_sources": (),
        "server": None,
        "format": None,
    }
    return Destination(number=number, **{**usual, **fields})


def mapped(mapping: int, sid: int, start: str = "2024-03-01", end: str | None = None, **fields: Any) -> Mapped:
    """A live mapping of a segment that was made long ago."""
    usual: dict[str, Any] = {"kind": "SEGMENT", "alias": str(sid), "since": 0, "active": True}
    return Mapped(
        mapping=mapping,
        sid=sid,
        start=date.fromisoformat(start),
        end=None if end is None else date.fromisoformat(end),
        **{**usual, **fields},
    )


@dataclass(frozen=True)
class Run:
    """A generated run. ``rows``: the lines of all parts."""

    generated: Generated
    content: bytes

    @property
    def rows(self) -> list[str]:
        return self.content.decode().splitlines()

    @property
    def names(self) -> list[str]:
        return [file.name for file in self.generated.files]


def content(made: Generated) -> bytes:
    """What lies in all parts of a run."""
    return b"".join(file.path.read_bytes() for file in made.files.data)


def monkeypatch_format(look: Look, document: Mapping[str, Any]) -> None:
    """Makes ``document`` the format 1 of what is configured."""
    setattr(look.audiences, "format_document", {1: document}.__getitem__)  # noqa: B010


class House:
    """Runs of destinations, each delivered as soon as it is generated unless it is to fail."""

    def __init__(self, folder: Path, workspace: Mapping[str, Any], limits: Limits | None = None) -> None:
        self.folder = folder
        self.product = Product(folder / "home", None, limits)
        self.product.now = TICK
        self.product.apply(workspace)
        self._baselines: dict[int, tuple[str, Path]] = {}
        self._runs = 0

    @property
    def now(self) -> datetime:
        return self.product.now

    @now.setter
    def now(self, instant: datetime) -> None:
        self.product.now = instant

    @contextmanager
    def site(self) -> Iterator[Site]:
        with Home.open(self.product.home, lambda: self.product.now) as home:
            site = Site(home, "production")
            yield site
            site.close()

    @contextmanager
    def look(self) -> Iterator[Look]:
        with self.site() as site:
            with Lease(site) as lease:
                evaluate_all(site, lease)
            yield Look(site, site.now())

    def configured(self, number: int) -> Destination:
        """A destination of the workspace as it is now."""
        with self.look() as look:
            return look.audiences.destinations[number]

    def export(self, wanted: Destination, mode: SyncMode = "iter", *, fails: bool = False, row: str = "") -> Run:
        """One run now. ``row``: the row template of a format; the default format otherwise."""
        with self.look() as look:
            if row:
                document = {"fileName": "out", "row": row}
                monkeypatch_format(look, document)
                wanted = replace(wanted, format=1)
            self._runs += 1
            folder = self.folder / "runs" / str(self._runs)
            before = self._baselines.get(wanted.number)
            started = int(self.now.timestamp() * 1000)
            made = generate(look, wanted, mode, started, None if before is None else before[1], folder)
        if not fails and (
            mode == "iter" or ((before is None or before[0] == "full") and wanted.sync_type == "lifetime")
        ):
            self._baselines[wanted.number] = mode, made.baseline
        return Run(made, content(made))

    def drop(self, name: str, lines: Sequence[str]) -> int:
        """Drops one file that is applied; gives its job."""
        (receipt,) = self.product.drop([(name, "".join(f"{line}\n" for line in lines).encode())])
        assert receipt["status"] == "processed", receipt
        return int(receipt["job"])
