"""A home with a bucket in memory as its drop-off, for tests of object storage."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from openaudience.cli import main
from openaudience.dropoff.notifications import Notifications
from openaudience.dropoff.objects import BucketDoor, bucket
from openaudience.dropoff.stores import AccessRefused, Object, Store
from openaudience.errors import StoreUnavailable
from openaudience.home import Home
from openaudience.runs.applier import Applier
from openaudience.runs.intake import Intake
from openaudience.runs.receipts import receipts_of
from openaudience.runs.site import Lease, Site

WORKSPACE = """
partners:
  - pid: 1001
    name: acme
    dataSources: [{dataSourceId: 7007, name: Loyalty, idType: CROSS_DEVICE, integrationCode: x}]
    traits: [{sid: 950, name: Ten, traitType: ON_BOARDED_TRAIT, dataSourceId: 7007, traitRule: 'ic == "10"'}]
  - pid: 1002
    name: bolt
    dataSources: [{dataSourceId: 8008, name: Other, idType: CROSS_DEVICE, integrationCode: y}]
"""
DAY = 86400
NOW = 1_800_000_000
FIRST = "ftp_dpm_7007_1700000000.sync"
SECOND = "ftp_dpm_7007_1700000001.sync"
PLACE = "acme/date=2027-01-15/"
PARTNERS = {"acme": 1001, "bolt": 1002}


class Shelf:
    """A store in memory that lists in an order of its own, twice where it likes, and fails when it is told to."""

    def __init__(self) -> None:
        self.things: dict[str, tuple[bytes, Object]] = {}
        self.failing: set[str] = set()
        self.refusing: set[str] = set()
        self.before_reading: Callable[[], None] = lambda: None
        self.read_keys: list[str] = []
        self.heads = 0
        self.lists = 0

    def put(self, key: str, content: bytes, at: float = NOW) -> None:
        etag = hashlib.md5(content, usedforsecurity=False).hexdigest()
        self.things[key] = (content, Object(key, etag, len(content), int(at)))

    def list(self, prefix: str) -> Iterator[Object]:
        self.lists += 1
        self._fail("list")
        there = [thing for key, (_, thing) in self.things.items() if key.startswith(prefix)]
        yield from sorted(there, key=lambda thing: thing.key[::-1])
        yield from there[:1]

    def head(self, key: str) -> Object | None:
        self.heads += 1
        self._fail("head")
        return self.things[key][1] if key in self.things else None

    @contextmanager
    def read(self, thing: Object) -> Iterator[Iterator[bytes] | None]:
        self.before_reading()
        self._fail(thing.key)
        if thing.key in self.refusing:
            raise AccessRefused("no")
        content, there = self.things.get(thing.key, (b"", None))
        self.read_keys.append(thing.key)
        yield self._blocks(thing.key, content) if there == thing else None

    def _blocks(self, key: str, content: bytes) -> Iterator[bytes]:
        yield content[:1]
        self._fail(f"{key} in the middle")
        yield content[1:]

    def delete(self, key: str) -> None:
        self._fail("delete")
        del self.things[key]

    def _fail(self, what: str) -> None:
        if what in self.failing:
            raise StoreUnavailable(f"the store fails at {what}")


class House:
    """A home with one bucket as its drop-off."""

    def __init__(self, home: Home) -> None:
        self.site = Site(home, "production")
        self.shelf = Shelf()
        self.now = float(NOW)

    def door(
        self,
        setting: str = "s3://drop",
        largest: int = 1000,
        store: Store | None = None,
        notifications: Notifications | None = None,
    ) -> BucketDoor:
        return BucketDoor(
            bucket(setting),
            store or self.shelf,
            object_seconds=30 * DAY,
            unfinished_seconds=DAY,
            largest=largest,
            notifications=notifications,
            list_seconds=900,
            now=lambda: self.now,
        )

    def intake(self, *doors: BucketDoor) -> Intake:
        return Intake(self.site, doors or [self.door()], lambda: self.now)

    def apply(self) -> None:
        with Lease(self.site) as lease:
            applier = Applier(self.site)
            applier.settler.tidy()
            applier.work(lease)

    def receipts(self) -> list[tuple[str, str, str]]:
        """(file, status, code) of every receipt."""
        with self.site.reading() as session:
            return [
                (name, one.receipt.status, one.receipt.reason[0] if one.receipt.reason else "")
                for one in receipts_of(session, "production")
                for name in one.receipt.files
            ]

    def copies(self) -> list[Path]:
        return list(self.site.environment.dropoff.iterdir())


Kind = TypeVar("Kind", bound=House)


@contextmanager
def opened_house(made: Path, folder: Path, kind: type[Kind]) -> Iterator[Kind]:
    """A copy of a home that ``make_home`` made."""
    shutil.copytree(made, folder / "home")
    with Home.open(folder / "home") as home:
        house = kind(home)
        yield house
        house.site.close()


def make_home(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "workspace.yaml").write_text(WORKSPACE)
    assert main(["init", "--home", str(folder / "home")]) == 0
    assert main(["workspace", "apply", str(folder / "workspace.yaml"), "--home", str(folder / "home")]) == 0
    return folder / "home"
